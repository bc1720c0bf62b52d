"""Inverse RL with a known truth: the gold reward is recovered from samples of the policy that is optimal for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afzal import objectives
from afzal.lab import exact, language
from afzal.objectives import Pairs, Scored, pairs
from afzal.stats.rewards import epic, ordering, regret

BETA, X, D = 0.7, 24, 250
PROMPTS = language.prompts()[0][:X]
TRUTH = language.reward(PROMPTS)
LOG_REF = exact.normalise(np.log(language.sft_policy(PROMPTS)))
KEYS = np.repeat(np.arange(X), TRUTH.shape[1]).tolist()


def features() -> np.ndarray:
    """``[X, Y, 6]``: the terms of the language's reward, each of unknown weight."""
    y = language.RESPONSES
    copied = (y[None, :, :3] == PROMPTS[:, None]).sum(-1)
    both = y[:, 1:] >= 0
    rises = ((y[:, 1:] > y[:, :-1]) & both).sum(1)
    repeats = ((y[:, 1:] == y[:, :-1]) & both).sum(1)
    parity = np.where(y >= 0, y, 0).sum(1) % 2 == PROMPTS.sum(1, keepdims=True) % 2
    alike = np.ones((X, 1))
    length = language.LENGTHS
    return np.stack([copied, alike * rises, alike * repeats, alike * abs(length - 3), parity, alike * length], -1)


def inferred(name: str, n: int = D, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``[6]`` and the reward ``[X, Y]`` of a linear model fitted by an objective to ``n`` demonstrations of the
    optimal policy and as many samples of the reference per prompt."""
    rng = np.random.default_rng(seed)
    which = np.repeat(np.arange(X), n)
    shown = language.sample(np.exp(exact.optimum(LOG_REF, TRUTH, BETA)), which, rng).reshape(X, n)
    drawn = language.sample(np.exp(LOG_REF), which, rng).reshape(X, n)
    seen = np.concatenate([shown, drawn], 1)
    table = features()
    f = torch.tensor(np.take_along_axis(table, seen[..., None], 1).reshape(-1, table.shape[-1]))
    weights = torch.zeros(table.shape[-1], dtype=torch.float64, requires_grad=True)
    b = np.arange(X * 2 * n).reshape(X, 2 * n)
    good = torch.tensor(np.tile([1.0] * n + [0.0] * n, X))
    first, second = (torch.tensor(x.ravel()) for x in (b[:, :n], b[:, n:]))
    about: Pairs = pairs(first, second, group_of=torch.arange(X).repeat_interleave(2 * n), score=good, desirable=good)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)  # the discriminator has no free constant per prompt
    solver = torch.optim.LBFGS([weights, bias], max_iter=40, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        scored = Scored(f @ weights + bias, torch.arange(len(f)), len(f))
        value = objectives.get(name).fn(scored, None, about, beta=BETA)[0].mean()
        value.backward()
        return value

    solver.step(loss)
    theta = weights.detach().numpy()
    return theta, table @ theta


@pytest.mark.parametrize("name", ["maxent_irl", "ranking_nce", "airl", "demonstration_pairs"])
def test_the_gold_reward_is_recovered_up_to_a_constant_per_prompt(name):
    weights, reward = inferred(name)
    coverage = np.exp(LOG_REF).ravel()
    assert epic(TRUTH.ravel(), reward.ravel(), KEYS, coverage).value < 0.05
    # the discriminator's constant cannot follow log Z(x), which biases it a little
    gold = [0.9, 0.5, -0.7, -0.35, language.KAPPA, 0]
    np.testing.assert_allclose(weights, gold, atol=0.15 if name == "airl" else 0.08)
    gap, p = reward - TRUTH, np.exp(LOG_REF)
    spread = np.sqrt((p * (gap - (p * gap).sum(1, keepdims=True)) ** 2).sum(1))
    assert spread.max() < 0.15
    assert regret(LOG_REF, TRUTH, reward, BETA).value < 0.01
    first = slice(0, 2 * TRUTH.shape[1])
    assert ordering(TRUTH.ravel()[first], reward.ravel()[first], KEYS[first]).spearman.value > 0.98


def test_more_samples_bring_it_nearer():
    distance = lambda n, seed: epic(TRUTH.ravel(), inferred("maxent_irl", n, seed)[1].ravel(), KEYS).value  # noqa: E731
    few, many = (np.mean([distance(n, seed) for seed in range(4)]) for n in (10, 160))
    assert many < 0.5 * few


def test_the_tabular_likelihood_is_greatest_at_the_log_ratio_of_frequencies():
    """One prompt with a separate reward for each response: r = beta log(shown / drawn) has no gradient, moments
    match, and a response that was never drawn has no finite reward."""
    rng = np.random.default_rng(3)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    seen = np.concatenate([rng.choice(3, 400, p=p), rng.choice(3, 400, p=q)])
    counts = [np.bincount(part, minlength=3) for part in (seen[:400], seen[400:])]
    table = torch.tensor(BETA * np.log(counts[0] / counts[1])).requires_grad_()
    score = torch.tensor([1.0] * 400 + [0.0] * 400)
    none = torch.zeros(0, dtype=torch.int64)
    about = pairs(none, none, group_of=torch.zeros(800, dtype=torch.int64), score=score)
    scored = Scored(table[torch.tensor(seen)], torch.arange(800), 800)
    (losses, _) = objectives.get("maxent_irl").fn(scored, None, about, beta=BETA)
    losses.sum().backward()
    assert table.grad is not None
    assert table.grad.abs().max() < 1e-9
    # and away from it the gradient is the difference of the moments, over beta
    moved = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    scored = Scored(moved[torch.tensor(seen)], torch.arange(800), 800)
    objectives.get("maxent_irl").fn(scored, None, about, beta=BETA)[0].sum().backward()
    assert moved.grad is not None
    np.testing.assert_allclose(moved.grad.numpy(), (counts[1] - counts[0]) / 400 / BETA, atol=1e-9)
