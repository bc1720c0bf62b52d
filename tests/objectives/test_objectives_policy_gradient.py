"""Losses on rollouts: by hand, in their limits, and against exact gradients of the expected reward."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from helpers_objectives import F64, opinions
from torch import Tensor

from afzal import objectives
from afzal.objectives import Scored, advantages, join_scored
from afzal.objectives.kl import next_kl_coef
from afzal.objectives.policy_gradient import grpo, ppo, rloo, value

ROLLOUT = sorted(name for name, o in objectives.REGISTRY.items() if o.scores == "rollout")
NONE = opinions(0)


def answers(logps, lengths: list[int] | None = None, **extras) -> Scored:
    """Answers whose tokens have these log-probs, one token each unless ``lengths`` says otherwise."""
    tokens = torch.as_tensor(logps, dtype=F64)
    lengths = lengths or [1] * len(tokens)
    response_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Scored(tokens, response_of, len(lengths), {k: torch.as_tensor(v, dtype=F64) for k, v in extras.items()})


def random_answers(seed: int = 0) -> Scored:
    rng = torch.Generator().manual_seed(seed)
    lengths = [3, 1, 4, 2]
    rand = lambda: torch.randn(sum(lengths), generator=rng, dtype=F64)  # noqa: E731
    extras = {name: rand() for name in ("advantage", "value", "old_value", "target")}
    logps = -rand().abs() - 0.1
    extras |= {"old_logp": logps + 0.3 * rand(), "ref_logp": logps + 0.5 * rand()}
    return answers(logps, lengths, **extras)


def losses_of(name: str, policy: Scored, **parameters: float) -> Tensor:
    return objectives.get(name).fn(policy, None, NONE, **parameters)[0]


def test_by_hand():
    """The numbers of the docstrings."""
    far = answers([math.log(1.5)] * 2, old_logp=[0, 0], advantage=[2, -2])
    assert ppo(far, None, NONE)[0].tolist() == pytest.approx([-2.4, 3.0])
    assert rloo(far, None, NONE)[0].tolist() == pytest.approx([-2.4, 3.0])
    seen = answers([0, 0], value=[1, 1], old_value=[0, 0], target=[2, 0.5])
    assert value(seen, None, NONE)[0].tolist() == pytest.approx([1.62, 0.125])
    # k3 of a log-ratio of 1: e^-1 - 1 + 1
    level = answers([0, 0], [2], old_logp=[0, 0], advantage=[2, 2], ref_logp=[-1, -1])
    assert grpo(level, None, NONE, beta=0.5)[0].tolist() == pytest.approx([-1.816060], abs=1e-6)


@pytest.mark.parametrize("name", ROLLOUT)
def test_one_loss_per_unit_and_a_gradient_that_is_that_of_finite_differences(name):
    policy = random_answers()
    moving = "value" if name == "value" else "token_logps"
    start = policy.extras["value"] if name == "value" else policy.token_logps

    def losses(x: Tensor) -> Tensor:
        moved = {**policy.extras, "value": x} if name == "value" else policy.extras
        return losses_of(name, Scored(x if moving == "token_logps" else start, policy.response_of, 4, moved))

    assert losses(start).shape == (4 if objectives.get(name).unit == "response" else 10,)
    assert torch.autograd.gradcheck(losses, start.clone().requires_grad_())


@pytest.mark.parametrize("name", ROLLOUT)
def test_batches_do_not_couple_and_rewards_carry_no_gradient(name):
    parts = [random_answers(1), random_answers(2)]
    joined = losses_of(name, join_scored(parts))
    torch.testing.assert_close(joined, torch.cat([losses_of(name, part) for part in parts]))
    _, rewards = objectives.get(name).fn(parts[0], None, NONE)
    assert rewards.shape == (4,)
    assert not rewards.requires_grad


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_where_the_policy_has_not_moved_the_gradient_is_that_of_reinforce(name):
    """Ratio 1: nothing is clipped, and the gradient of a token's log-prob is minus its advantage (its share of it)."""
    base = random_answers(3)
    logps = base.extras["old_logp"].clone().requires_grad_()
    level = {**base.extras, "advantage": base.total(base.extras["advantage"])[base.response_of]}
    policy = Scored(logps, base.response_of, 4, level)
    (gradient,) = torch.autograd.grad(losses_of(name, policy, **({"beta": 0.0} if name == "grpo" else {})).sum(), logps)
    share = policy.lengths[policy.response_of] if name == "grpo" else 1.0
    torch.testing.assert_close(gradient, -level["advantage"] / share)
    objective = objectives.get(name)
    assert objective.metrics is not None
    figures = objective.metrics(policy, NONE, **objective.parameters)
    assert float(figures["policy/clipfrac"][0]) == 0
    assert float(figures["policy/approxkl"][0]) == pytest.approx(0.0, abs=1e-15)
    assert float(figures["policy/ratio"][0] / figures["policy/ratio"][1]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["ppo", "rloo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "flat"),
    [(1.3, 1, True), (1.3, -1, False), (0.7, -1, True), (0.7, 1, False), (1.1, 1, False)],
)
def test_a_ratio_that_has_gone_far_enough_has_no_gradient(name, ratio, advantage, flat):
    logps = torch.tensor([math.log(ratio)], dtype=F64, requires_grad=True)
    policy = Scored(logps, torch.tensor([0]), 1, answers([0], old_logp=[0], advantage=[advantage]).extras)
    (gradient,) = torch.autograd.grad(losses_of(name, policy).sum(), logps)
    assert gradient.tolist() == pytest.approx([0.0 if flat else -advantage * ratio])


def test_the_upper_clip_may_be_another():
    policy = answers([math.log(1.25)], old_logp=[0], advantage=[1])
    assert losses_of("ppo", policy).tolist() == pytest.approx([-1.2])
    assert losses_of("ppo", policy, clip_high=0.28).tolist() == pytest.approx([-1.25])


@pytest.mark.parametrize("name", ROLLOUT)
def test_extreme_log_ratios_give_no_infinity(name):
    sizes = [1e4, -1e4, 0.0, 100.0, -100.0]
    rows = list(product(sizes, sizes, [1.0, -1.0, 0.0]))
    logps, old, gain = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    extras = {"old_logp": old, "ref_logp": -old, "advantage": gain, "value": logps, "old_value": old, "target": gain}
    logps = logps.requires_grad_()
    extras["value"] = logps
    losses = losses_of(name, Scored(logps, torch.arange(len(rows)), len(rows), extras))
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_the_value_loss_takes_the_worse_of_moved_and_clipped():
    """Towards its target a value has a gradient until it has moved by value_clip; away from it, always."""
    at = torch.tensor([0.1, 0.5, -0.5], dtype=F64, requires_grad=True)
    policy = Scored(at, torch.arange(3), 3, {"value": at, "old_value": at.detach() * 0, "target": at.detach() * 0 + 2})
    (gradient,) = torch.autograd.grad(losses_of("value", policy).sum(), at)
    assert gradient.tolist() == pytest.approx([-1.9, 0.0, -2.5])


def test_longer_answers_weigh_less_per_token_in_grpo():
    """The mean is over an answer's own tokens: in a longer wrong answer each token is punished less."""
    logps = torch.zeros(6, dtype=F64, requires_grad=True)
    policy = Scored(
        logps, torch.tensor([0, 0, 1, 1, 1, 1]), 2, answers([0] * 6, old_logp=[0] * 6, advantage=[-1] * 6).extras
    )
    (gradient,) = torch.autograd.grad(losses_of("grpo", policy, beta=0.0).sum(), logps)
    assert gradient.tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


# the expected gradient, by enumeration

S, K, BETA = 5, 3, 0.3


def world() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy over S answers of one token, log-probs of its reference, and rewards."""
    rng = torch.Generator().manual_seed(5)
    logits, reference = (torch.randn(S, generator=rng, dtype=F64) for _ in range(2))
    return logits.requires_grad_(), reference.log_softmax(0), torch.linspace(-1, 2, S, dtype=F64) ** 3


def expected_gradient(name: str, logits: Tensor, worth: Tensor, advantage) -> Tensor:
    """E of the loss's gradient over all S^K groups of K answers, each weighed by its probability."""
    log_pi = logits.log_softmax(0)
    total = torch.zeros((), dtype=F64)
    for group in product(range(S), repeat=K):
        drawn = torch.tensor(group)
        policy = Scored(log_pi[drawn], torch.arange(K), K, {
            "old_logp": log_pi[drawn].detach(),
            "advantage": advantage(worth[drawn][None])[0],
        })  # fmt: skip
        parameters = {"beta": 0.0} if name == "grpo" else {}
        total = total + log_pi[drawn].sum().exp().detach() * losses_of(name, policy, **parameters).mean()
    return torch.autograd.grad(total, logits)[0]


def test_rloo_is_unbiased_and_grpo_is_not():
    """With the penalty in the reward, minus the expected gradient is that of E r - beta KL(pi || pi_ref), to 1e-10."""
    logits, reference, rewards = world()
    log_pi = logits.log_softmax(0)
    goal = (log_pi.exp() * (rewards - BETA * (log_pi - reference))).sum()
    (exact,) = torch.autograd.grad(goal, logits, retain_graph=True)
    worth = (rewards - BETA * (log_pi - reference)).detach()
    gradient = -expected_gradient("rloo", logits, worth, advantages.rloo)
    assert (gradient - exact).abs().max() < 1e-10
    normalised = -expected_gradient("grpo", logits, worth, advantages.group_normalised)
    assert (normalised - exact).abs().max() > 0.01
    assert float(torch.cosine_similarity(normalised, exact, dim=0)) < 0.999


# from rewards to a policy


def test_the_answers_score_stands_at_the_last_real_token():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    penalties = torch.tensor([[0.5, -1.0, 2.0], [3.0, 9.0, 9.0]])
    rewards = advantages.token_rewards(torch.tensor([10.0, 20.0]), penalties, mask)
    assert rewards.tolist() == [[-0.5, 1.0, 8.0], [17.0, 0.0, 0.0]]


def test_token_penalties_add_up_to_the_answers_log_ratio():
    rng = torch.Generator().manual_seed(0)
    old, ref = (torch.randn(4, 6, generator=rng, dtype=F64) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    rewards = advantages.token_rewards(torch.zeros(4, dtype=F64), 0.7 * (old - ref), mask)
    torch.testing.assert_close(rewards.sum(1), -0.7 * ((old - ref) * mask).sum(1))


def test_the_adaptive_coefficient_rests_at_its_target_and_moves_a_fifth_at_most():
    assert next_kl_coef(0.2, 6.0, target=6.0, horizon=10_000, n=512) == 0.2
    assert next_kl_coef(0.2, 6.6, target=6.0, horizon=1000, n=500) == pytest.approx(0.2 * 1.05)
    assert next_kl_coef(0.2, 600.0, target=6.0, horizon=1000, n=500) == pytest.approx(0.2 * 1.1)
    assert next_kl_coef(0.2, -3.0, target=6.0, horizon=1000, n=500) == pytest.approx(0.2 * 0.9)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ppo_with_the_true_reward_finds_the_tilted_reference(beta):
    """A bandit of eight arms: pi_ref e^(r / beta) / Z, total variation below 0.02 (methods that keep to their name)."""
    rng = torch.Generator().manual_seed(1)
    reference = torch.randn(8, generator=rng, dtype=F64).log_softmax(0)
    rewards = torch.randn(8, generator=rng, dtype=F64)
    optimum = (reference + rewards / beta).softmax(0)
    logits, expected = reference.clone().requires_grad_(), torch.zeros(1, dtype=F64, requires_grad=True)
    optimiser = torch.optim.Adam([logits, expected], lr=0.05)
    assert float((reference.softmax(0) - optimum).abs().sum() / 2) > 0.1
    for iteration in range(150):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - iteration / 150)
        old, before = logits.detach().log_softmax(0), expected.detach().clone()
        drawn = torch.multinomial(old.exp(), 256, replacement=True, generator=rng)
        mask = torch.ones(256, 1, dtype=torch.bool)
        penalties = beta * (old - reference)[drawn][:, None]
        earned = advantages.token_rewards(rewards[drawn], penalties, mask)
        gained = advantages.gae(earned, before.expand(256, 1), mask)[:, 0]
        facts = {
            "old_logp": old[drawn],
            "advantage": gained,
            "old_value": before.expand(256),
            "target": gained + before,
        }
        for _ in range(4):
            extras = {**facts, "value": expected.expand(256)}
            policy = Scored(logits.log_softmax(0)[drawn], torch.arange(256), 256, extras)
            loss = losses_of("ppo", policy).mean() + 0.5 * losses_of("value", policy, value_clip=1.0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert float((logits.detach().softmax(0) - optimum).abs().sum() / 2) < 0.02
