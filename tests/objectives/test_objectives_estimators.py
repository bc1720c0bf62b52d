"""Estimators of the KL and advantages, against exact values on a toy of 50 symbols."""

from __future__ import annotations

import pytest
import torch
from helpers_objectives import F64
from torch import Tensor

from afzal.objectives.advantages import gae, group_normalised, rloo, whiten
from afzal.objectives.kl import k1, k2, k3

V, N = 50, 200_000


@pytest.fixture(scope="module")
def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of policy and reference over 50 symbols, and samples of the policy."""
    rng = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(V, generator=rng, dtype=F64).log_softmax(0) for _ in range(2))
    return policy, reference, torch.multinomial(policy.exp(), N, replacement=True, generator=rng)


def exact_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased_within_three_standard_errors(toy, estimator):
    policy, reference, drawn = toy
    values = estimator((policy - reference)[drawn])
    error = float(values.std() / N**0.5)
    assert abs(float(values.mean() - exact_kl(policy, reference))) < 3 * error
    assert error < 0.01


def test_k2_is_biased_and_k3_never_negative(toy):
    policy, reference, drawn = toy
    values = k2((policy - reference)[drawn])
    expected = float((policy.exp() * (policy - reference) ** 2 / 2).sum())
    assert abs(float(values.mean()) - expected) < 3 * float(values.std() / N**0.5)
    assert abs(expected - float(exact_kl(policy, reference))) > 0.05
    assert k3(torch.linspace(-200, 50, 1000)).min() >= 0
    assert k3(torch.tensor([-1e4, 1e4])).isfinite().all()


def test_k3_has_less_variance_than_k1(toy):
    """Near the reference, where it is used."""
    policy, reference, drawn = toy
    near = (0.9 * reference + 0.1 * policy).log_softmax(0)
    ratios = (near - reference)[drawn]
    assert float(k3(ratios).var()) < float(k1(ratios).var())


@pytest.mark.parametrize(
    ("estimator", "gradient_of"),
    [
        (k1, None),
        (k2, lambda policy, reference: exact_kl(policy, reference)),
        (k3, lambda policy, reference: exact_kl(reference, policy)),
    ],
)
def test_expected_gradients_as_losses_are_exact(toy, estimator, gradient_of):
    """E_pi[d/dtheta estimator(l)] summed over all symbols: 0, that of the reverse KL, that of the forward KL."""
    policy, reference, _ = toy
    logits = policy.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    (gradient,) = torch.autograd.grad((log_pi.detach().exp() * estimator(log_pi - reference)).sum(), logits)
    if gradient_of is None:
        expected = torch.zeros_like(gradient)
    else:
        (expected,) = torch.autograd.grad(gradient_of(logits.log_softmax(0), reference), logits)
    assert (gradient - expected).abs().max() <= 1e-6


def rollouts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(4, 6, generator=rng, dtype=F64) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    return rewards, values, mask


def test_gae_at_one_is_the_reward_to_go_minus_the_value():
    rewards, values, mask = rollouts()
    kept = rewards * mask
    to_go = kept.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, mask, gamma=1.0, lam=1.0), (to_go - values) * mask)


def test_gae_at_zero_is_the_one_step_error():
    rewards, values, mask = rollouts()
    after = torch.cat([(values * mask)[:, 1:], torch.zeros(4, 1, dtype=F64)], 1)
    expected = (rewards + 0.9 * after - values) * mask
    torch.testing.assert_close(gae(rewards, values, mask, gamma=0.9, lam=0.0), expected)


def test_gae_by_hand():
    """R = (0, 1), V = (0.5, 0.25), gamma = 1, lam = 0.5: delta = (-0.25, 0.75), A = (0.125, 0.75)."""
    advantages = gae(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.ones(1, 2, dtype=torch.bool), lam=0.5
    )
    assert advantages.tolist() == [[0.125, 0.75]]


def test_gae_reads_nothing_behind_the_mask():
    rewards, values, mask = rollouts()
    junk = torch.where(mask, 0.0, float("nan"))
    advantages = gae(rewards + junk, values + junk, mask)
    torch.testing.assert_close(advantages, gae(rewards, values, mask))


def test_whitened_values_have_mean_zero_and_variance_one_over_real_tokens():
    rewards, _, mask = rollouts()
    whitened = whiten(rewards, mask)
    assert float(whitened[mask].mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(whitened[mask].var(correction=0)) == pytest.approx(1.0, abs=1e-6)
    assert whitened[~mask].abs().max() == 0


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert rloo(rewards).tolist() == [pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])]
    assert float(rloo(torch.randn(3, 5)).sum(1).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="at least two"):
        rloo(torch.ones(3, 1))


def test_leave_one_out_gradient_is_unbiased_and_the_normalised_one_is_not(toy):
    """E over all pairs of draws of sum_i A_i grad log pi(y_i) / K, by enumeration."""
    policy, _, _ = toy
    rewards = torch.linspace(-1, 2, V, dtype=F64) ** 3
    logits = policy.clone().requires_grad_()
    (exact,) = torch.autograd.grad((logits.log_softmax(0).exp() * rewards).sum(), logits)
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    weight = policy[pairs].sum(1).exp()

    def expected_gradient(advantage):
        (gradient,) = torch.autograd.grad(
            (weight * (advantage(rewards[pairs]) * logits.log_softmax(0)[pairs]).mean(1)).sum(), logits
        )
        return gradient

    assert (expected_gradient(rloo) - exact).abs().max() < 1e-10
    normalised = expected_gradient(group_normalised)
    assert float(torch.cosine_similarity(normalised, exact, dim=0)) < 0.999


def test_group_normalised_advantages_by_hand():
    """(1 - 2) / (sqrt 2 + 1e-4), with the divisor K - 1 under the root."""
    advantages = group_normalised(torch.tensor([[1.0, 3.0], [0.0, 4.0]], dtype=F64))
    assert advantages[0].tolist() == pytest.approx([-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)], rel=1e-12)
    assert advantages[1].tolist() == pytest.approx([-2 / (8**0.5 + 1e-4), 2 / (8**0.5 + 1e-4)], rel=1e-12)


def test_the_rounding_of_equal_rewards_is_no_advantage():
    """Scores of a reward model that differ in their last bit: with 1e-8 they became advantages of 1."""
    rewards = torch.tensor([[0.3, 0.3 + 1e-7, 0.3, 0.3]], dtype=F64)
    assert float(group_normalised(rewards).abs().max()) < 1e-3
    assert float(group_normalised(rewards, eps=1e-8).abs().max()) > 0.9


def test_equal_rewards_in_a_group_give_no_advantage():
    assert group_normalised(torch.full((2, 4), 3.0)).abs().max() == 0
    assert rloo(torch.full((2, 4), 3.0)).abs().max() == 0
