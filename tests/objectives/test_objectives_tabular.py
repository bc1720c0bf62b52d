"""Facts about the objectives that hold exactly for a policy that is a table, in float64.

X prompts, Y responses of one token each, a free logit for every entry. ``docs/maths.md`` gives the derivations.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afzal.lab import exact
from afzal.objectives import Pairs, Scored, dpo, get, ipo, pairs
from afzal.train.constraints import Constraint

X, Y, BETA = 3, 5, 0.3


@pytest.fixture
def world() -> tuple[Tensor, Tensor]:
    """Rewards and reference log-probs, ``[X, Y]`` each."""
    rng = torch.Generator().manual_seed(1)
    rewards = torch.randn(X, Y, dtype=torch.float64, generator=rng)
    return rewards, torch.randn(X, Y, dtype=torch.float64, generator=rng).log_softmax(1)


def table(logps: Tensor) -> Scored:
    """``[X, Y]`` log-probs as X * Y responses of one token."""
    return Scored(logps.flatten(), torch.arange(logps.numel()), logps.numel())


def all_pairs(p_of: Callable[[int, int, int], float], n_prompts: int = X, n_responses: int = Y) -> Pairs:
    """Every pair i < j of every prompt, once, with the probability ``p_of(x, i, j)`` that i is better."""
    keys = [(x, i, j) for x in range(n_prompts) for i, j in combinations(range(n_responses), 2)]
    first = torch.tensor([x * n_responses + i for x, i, _ in keys])
    second = torch.tensor([x * n_responses + j for x, _, j in keys])
    p = torch.tensor([float(p_of(*key)) for key in keys], dtype=torch.float64)
    return pairs(first, second, p=p, weight=torch.ones_like(p))


def bradley_terry(rewards: Tensor) -> Pairs:
    """Every pair of a prompt with its label probability sigma(r_i - r_j)."""
    return all_pairs(lambda x, i, j: torch.sigmoid(rewards[x, i] - rewards[x, j]).item(), *rewards.shape)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """The minimiser of a smooth function by LBFGS with strong Wolfe line search, and its value."""
    x = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=2000,
        max_eval=10000,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    return x.detach(), loss(x).item()


def fit_dpo(labels: Pairs, log_ref: Tensor, beta: float) -> tuple[Tensor, float]:
    """Log-probs of the policy that minimises the mean DPO loss, from the reference, and the minimum."""
    reference = table(log_ref)
    solution, least = minimise(
        lambda logits: dpo(table(logits.log_softmax(1)), reference, labels, beta=beta)[0].mean(), log_ref
    )
    return solution.log_softmax(1), least


def total_variation(log_p: Tensor, log_q: Tensor | np.ndarray) -> float:
    """The largest total variation over prompts."""
    return (0.5 * (log_p.exp() - torch.as_tensor(log_q).exp()).abs().sum(1)).max().item()


def optimum(log_ref: Tensor, rewards: Tensor, beta: float) -> np.ndarray:
    return exact.optimum(log_ref.numpy(), rewards.numpy(), beta)


def test_constrained_optimum_is_the_tilted_reference(world):
    """max E[r] - beta KL has the solution pi_ref e^{r/beta} / Z (maths.md 1; Rafailov et al. 2023, eq. 4)."""
    rewards, log_ref = world

    def negative_objective(logits: Tensor) -> Tensor:
        log_pi = logits.log_softmax(1)
        return -(log_pi.exp() * (rewards - BETA * (log_pi - log_ref))).sum(1).mean()

    solution, least = minimise(negative_objective, torch.zeros(X, Y, dtype=torch.float64))
    assert total_variation(solution.log_softmax(1), optimum(log_ref, rewards, BETA)) < 1e-6
    log_z = exact.log_partition(log_ref.numpy(), rewards.numpy(), BETA)
    assert -least == pytest.approx(BETA * log_z.mean(), abs=1e-10)  # the maximum is beta log Z


def test_dpo_minimiser_is_the_constrained_optimum(world):
    """With labels sigma(r_i - r_j) on all pairs, minimising DPO recovers pi_ref e^{r/beta} / Z (maths.md 3)."""
    rewards, log_ref = world
    log_pi, _ = fit_dpo(bradley_terry(rewards), log_ref, BETA)
    assert total_variation(log_pi, log_ref) > 0.1  # there was something to learn
    assert total_variation(log_pi, optimum(log_ref, rewards, BETA)) < 1e-6


def test_dpo_minimum_is_the_label_entropy(world):
    """Cross-entropy = entropy + KL of the labels, and the KL reaches 0: the minimum is the mean binary entropy."""
    rewards, log_ref = world
    labels = bradley_terry(rewards)
    _, least = fit_dpo(labels, log_ref, BETA)
    entropy = -(labels.p * labels.p.log() + (1 - labels.p) * (1 - labels.p).log()).mean()
    assert least == pytest.approx(entropy.item(), abs=1e-9)


def test_implicit_reward_is_the_reward_up_to_a_constant_per_prompt(world):
    """beta rho - r depends on the prompt alone, and is -beta log Z(x) (maths.md 2; Rafailov et al. 2023, eq. 5)."""
    rewards, log_ref = world
    log_pi, _ = fit_dpo(bradley_terry(rewards), log_ref, BETA)
    rest = BETA * (log_pi - log_ref) - rewards
    log_z = torch.as_tensor(exact.log_partition(log_ref.numpy(), rewards.numpy(), BETA))
    assert (rest + BETA * log_z[:, None]).abs().max() < 1e-6
    assert log_z.std() > 0.01  # the constant does differ from prompt to prompt


def test_rewards_that_differ_by_a_function_of_the_prompt_are_one_class(world):
    """r and r + f(x) give the same labels, loss and optimum (Rafailov et al. 2023, lemmas 1 and 2)."""
    rewards, log_ref = world
    shift = torch.tensor([[-3.0], [0.5], [7.0]], dtype=torch.float64)
    assert torch.allclose(bradley_terry(rewards).p, bradley_terry(rewards + shift).p, atol=1e-14)
    apart = optimum(log_ref, rewards, BETA) - optimum(log_ref, rewards + shift, BETA)
    assert np.abs(apart).max() < 1e-12


def test_dpo_reward_is_the_normalised_member_of_its_class(world):
    """Of each class, beta rho is the member with E_ref[e^{r/beta}] = 1 (Rafailov et al. 2023, theorem 1)."""
    rewards, log_ref = world
    log_pi, _ = fit_dpo(bradley_terry(rewards), log_ref, BETA)
    _, implicit = dpo(table(log_pi), table(log_ref), bradley_terry(rewards), beta=BETA)
    log_z = exact.log_partition(log_ref.numpy(), implicit.reshape(X, Y).numpy(), BETA)
    assert np.abs(log_z).max() < 1e-12
    assert np.abs(exact.log_partition(log_ref.numpy(), rewards.numpy(), BETA)).min() > 1e-3


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_pairwise_losses_ignore_what_both_responses_share(world, loss):
    """Adding c(x) to all log-probs of a prompt, on either side, changes no loss: h is a difference."""
    rewards, log_ref = world
    labels, log_pi = bradley_terry(rewards), rewards.log_softmax(1)
    shift = torch.tensor([[-3.0], [0.5], [7.0]], dtype=torch.float64)
    expected = loss(table(log_pi), table(log_ref), labels)[0]
    assert torch.allclose(loss(table(log_pi + shift), table(log_ref), labels)[0], expected, atol=1e-10)
    assert torch.allclose(loss(table(log_pi), table(log_ref + shift), labels)[0], expected, atol=1e-10)


def test_dpo_gradient_is_weighted_by_how_wrong_the_implicit_reward_is(world):
    """dL/dlog pi(y_w) = -beta sigma(r_l - r_w) = -dL/dlog pi(y_l) (maths.md 4; main text of the paper, eq. 7)."""
    rewards, log_ref = world
    logps = rewards.log_softmax(1).flatten().requires_grad_(True)
    one = pairs(torch.tensor([1]), torch.tensor([3]))
    policy = Scored(logps, torch.arange(X * Y), X * Y)
    losses, implicit = dpo(policy, table(log_ref), one, beta=BETA)
    losses.sum().backward()
    assert logps.grad is not None
    expected = torch.zeros(X * Y, dtype=torch.float64)
    expected[1] = -BETA * torch.sigmoid(implicit[3] - implicit[1])
    expected[3] = -expected[1]
    assert torch.allclose(logps.grad, expected, atol=1e-14)


def test_bradley_terry_maximum_likelihood_recovers_the_reward(world):
    """Fitting rewards to sigma(r_i - r_j) on a connected graph recovers r up to a constant per prompt."""
    rewards, _ = world
    labels = bradley_terry(rewards)

    def cross_entropy(fitted: Tensor) -> Tensor:
        flat = fitted.flatten()
        gap = flat[labels.yw_idxs] - flat[labels.yl_idxs]
        return F.binary_cross_entropy_with_logits(gap, labels.p)

    fitted, _ = minimise(cross_entropy, torch.zeros(X, Y, dtype=torch.float64))
    apart = fitted - rewards
    assert (apart - apart.mean(1, keepdim=True)).abs().max() < 1e-6


def test_dpo_says_nothing_about_responses_nobody_compared(world):
    """With 1 ≻ 2 the only comparison, mass moves to the third response at no cost (Xu et al. 2024, 2404.10719)."""
    _, log_ref = world
    labels = pairs(torch.tensor([0]), torch.tensor([1]), p=torch.tensor([0.8], dtype=torch.float64))
    base = torch.tensor([[0.6, 0.15, 0.25]], dtype=torch.float64)
    moved = torch.tensor([[0.06, 0.015, 0.925]], dtype=torch.float64)
    reference = table(log_ref[:1, :3])
    first, second = (dpo(table(p.log()), reference, labels, beta=BETA)[0] for p in (base, moved))
    assert torch.allclose(first, second, atol=1e-14)


def test_a_reset_reference_divides_beta_by_the_number_of_rounds(world):
    """Three exact rounds with the reference reset and beta kept give pi_ref e^{3 r / beta} / Z."""
    rewards, log_ref = world
    labels, beta, reached = bradley_terry(rewards), 1.5, log_ref
    for _ in range(3):
        reached, _ = fit_dpo(labels, reached, beta)
    assert total_variation(reached, optimum(log_ref, rewards, beta / 3)) < 1e-6
    assert total_variation(reached, optimum(log_ref, rewards, beta)) > 0.05


def test_a_policy_equal_to_its_data_has_no_expected_gradient(world):
    """SPIN's fixed point: winners from the data, losers from the policy, policy = reference = data (2401.01335)."""
    _, log_ref = world
    logits = log_ref[:1].clone().requires_grad_(True)
    chosen, rejected = (i.flatten() for i in torch.meshgrid(torch.arange(Y), torch.arange(Y), indexing="ij"))
    data = log_ref[0].exp()
    losses, _ = dpo(table(logits.log_softmax(1)), table(log_ref[:1]), pairs(chosen, rejected), beta=BETA)
    (losses * data[chosen] * data[rejected]).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-14


def test_ipo_minimiser_follows_the_mean_win_probability(world):
    """IPO over all pairs ends at pi_ref e^{p(y beats mu) / tau} / Z, mu uniform (maths.md 5; Azar et al. 2023)."""
    rewards, log_ref = world
    tau = 0.4
    p = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :]) ** 1.7  # no Bradley-Terry model fits these
    p = torch.triu(p, 1) + torch.tril(1 - p.transpose(1, 2), -1) + 0.5 * torch.eye(Y, dtype=torch.float64)
    labels, reference = all_pairs(lambda x, i, j: p[x, i, j].item()), table(log_ref)
    solution, _ = minimise(
        lambda logits: ipo(table(logits.log_softmax(1)), reference, labels, beta=tau)[0].mean(), log_ref
    )
    assert total_variation(solution.log_softmax(1), optimum(log_ref, p.mean(2), tau)) < 1e-6


def test_dpo_has_no_finite_minimiser_on_certain_labels():
    """A larger margin is always better when labels never err, whatever beta is (Azar et al. 2023, section 4.2)."""
    labels = pairs(torch.tensor([0]), torch.tensor([1]))
    reference = table(torch.full((1, 2), 0.5, dtype=torch.float64).log())
    margins = torch.tensor([0.0, 1.0, 10.0, 100.0, 300.0], dtype=torch.float64, requires_grad=True)
    losses = []
    for margin in margins:
        policy = table(torch.stack([margin, margin * 0]).log_softmax(0)[None])
        losses.append(dpo(policy, reference, labels, beta=1.0)[0])
    loss = torch.cat(losses)
    loss.sum().backward()
    assert margins.grad is not None
    assert (loss.diff() < 0).all()
    assert (margins.grad < 0).all()  # nowhere stationary
    assert loss[-1] < 1e-100


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_ipo_stops_at_a_finite_margin_on_certain_labels(tau):
    """Two actions, uniform reference, labels that never err: h = 1 / (2 tau), so pi(better) = sigma(1 / (2 tau))."""
    labels = pairs(torch.tensor([0]), torch.tensor([1]))
    log_ref = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    solution, least = minimise(
        lambda logits: ipo(table(logits.log_softmax(1)), table(log_ref), labels, beta=tau)[0].mean(), log_ref
    )
    assert least == pytest.approx(0, abs=1e-12)
    assert solution.softmax(1)[0, 0].item() == pytest.approx(1 / (1 + np.exp(-1 / (2 * tau))), abs=1e-8)


def test_dpo_on_helpfulness_and_then_on_safety_with_the_first_result_as_reference_is_dpo_on_their_sum(world):
    """SACPO (Wachi et al. 2024): beta for the first step and beta / lambda for the second give
    pi_ref e^{(r + lambda g)/beta} / Z, in either order."""
    rewards, log_ref = world
    safety = torch.randn(X, Y, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight = 2.5
    both = optimum(log_ref, rewards + weight * safety, BETA)
    helpful, _ = fit_dpo(bradley_terry(rewards), log_ref, BETA)
    assert total_variation(helpful, both) > 0.1
    log_pi, _ = fit_dpo(bradley_terry(safety), helpful, BETA / weight)
    assert total_variation(log_pi, both) < 1e-6
    safe, _ = fit_dpo(bradley_terry(safety), log_ref, BETA / weight)
    assert total_variation(fit_dpo(bradley_terry(rewards), safe, BETA)[0], both) < 1e-6


def test_modpo_on_the_labels_of_one_objective_reaches_the_optimum_of_the_weighted_sum(world):
    rewards, log_ref = world
    other = torch.randn(X, Y, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels, w = bradley_terry(rewards), 0.4
    gap = (1 - w) * (other.flatten()[labels.yw_idxs] - other.flatten()[labels.yl_idxs])
    assert (gap < 0).any()  # the other objective is against some labels
    given = pairs(labels.yw_idxs, labels.yl_idxs, p=labels.p, margin=gap)
    modpo, reference = get("modpo").fn, table(log_ref)
    solution, _ = minimise(
        lambda logits: modpo(table(logits.log_softmax(1)), reference, given, beta=BETA, w=w)[0].mean(), log_ref
    )
    assert total_variation(solution.log_softmax(1), optimum(log_ref, w * rewards + (1 - w) * other, BETA)) < 1e-6


def test_dual_steps_from_sampled_costs_bring_dpo_on_the_relabelled_reward_to_its_bound(world):
    """C-DPO (Liu et al. 2024): relabel by r - lambda c, train, estimate E[c] from samples, step; with a table that is
    trained to the end the multiplier becomes that of the constrained optimum, and the cost keeps the bound."""
    rewards, log_ref = world
    costs = torch.rand(X, Y, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    free = exact.expected(optimum(log_ref, rewards, BETA), costs.numpy())
    bound = 0.8 * free
    best = exact.constrained_optimum(log_ref.numpy(), rewards.numpy(), costs.numpy(), BETA, bound)
    assert best.multiplier > 0.1
    draws = torch.Generator().manual_seed(5)
    carried: dict[str, float] = {}
    course = []
    for step in range(400):
        held = Constraint("cost", lambda *_: costs.sum(), bound=bound, dual_lr=20.0 / (10 + step))
        multiplier = carried.get(held.multiplier_key, 0.0)
        log_pi = torch.as_tensor(optimum(log_ref, rewards - multiplier * costs, BETA))
        if step in (0, 5):  # the optimum stands in for the training
            fitted, _ = fit_dpo(bradley_terry(rewards - multiplier * costs), log_ref, BETA)
            assert total_variation(fitted, log_pi) < 1e-6
        drawn = torch.multinomial(log_pi.exp(), 256, replacement=True, generator=draws)
        carried = held.next_multiplier(costs.gather(1, drawn).mean().item(), carried)
        course.append(carried[held.multiplier_key])
    settled = float(np.mean(course[200:]))
    assert settled == pytest.approx(best.multiplier, rel=0.1)
    kept = optimum(log_ref, rewards - settled * costs, BETA)
    assert exact.expected(kept, costs.numpy()) <= bound + 0.01
    assert total_variation(torch.as_tensor(kept), best.log_pi) < 0.03
