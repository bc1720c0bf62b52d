"""Statistics of next-token distributions in which some tokens have probability 0 (logits of -inf)."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_objectives import F64
from torch import Tensor

from afzal.objectives.statistics import kl_policy_ref, kl_ref_policy, log_sum_p2, logp_away, logp_towards

ROWS, V, BARRED = 5, 11, [0, 4, 10]
OPEN = [v for v in range(V) if v not in BARRED]


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of policy and reference, -inf at the barred tokens, and targets among the others."""
    rng = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(ROWS, V, generator=rng, dtype=F64) for _ in range(2))
    policy[:, BARRED] = reference[:, BARRED] = -math.inf
    return policy, reference, torch.tensor(OPEN)[torch.randint(len(OPEN), (ROWS,), generator=rng)]


def without(logits: Tensor) -> Tensor:
    """The same distribution over the tokens that are not barred."""
    return logits[:, OPEN]


@pytest.mark.parametrize("statistic", [kl_policy_ref, kl_ref_policy])
def test_a_kl_is_that_over_the_tokens_that_can_be_written(logits, statistic):
    policy, reference, target = logits
    kl = statistic(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1))
    p, q = without(policy).log_softmax(-1), without(reference).log_softmax(-1)
    p, q = (p, q) if statistic is kl_policy_ref else (q, p)
    torch.testing.assert_close(kl, (p.exp() * (p - q)).sum(-1), rtol=0, atol=1e-14)


def test_the_gradient_of_a_kl_is_that_over_the_tokens_that_can_be_written(logits):
    policy, reference, target = logits
    policy.requires_grad_()
    kl_ref_policy(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1)).sum().backward()
    expected = torch.zeros_like(policy)  # softmax of the policy - that of the reference
    expected[:, OPEN] = without(policy.detach()).softmax(-1) - without(reference).softmax(-1)
    torch.testing.assert_close(policy.grad, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("statistic", [kl_policy_ref, kl_ref_policy])
def test_a_kl_is_infinite_where_only_the_first_can_write_a_token(logits, statistic):
    policy, reference, target = logits
    narrower = reference if statistic is kl_policy_ref else policy
    narrower[0, OPEN[0]] = -math.inf
    kl = statistic(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1))
    assert math.isinf(kl[0])
    assert kl[1:].isfinite().all()


@pytest.mark.parametrize("statistic", [kl_policy_ref, kl_ref_policy])
def test_a_kl_is_finite_where_only_the_second_can_write_a_token(logits, statistic):
    policy, reference, target = logits
    wider = reference if statistic is kl_policy_ref else policy
    wider[:, BARRED[0]] = 0.0
    assert (statistic(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1)) > 0).all()


@pytest.mark.parametrize(("statistic", "share"), [(logp_away, 1.2), (logp_towards, 0.8)])
def test_mixtures_of_logits_leave_barred_tokens_barred(logits, statistic, share: float):
    policy, reference, target = logits
    logps = statistic(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1), epsilon=0.2)
    mixed = (share * without(policy) + (1 - share) * without(reference)).log_softmax(-1)
    at = torch.tensor([OPEN.index(int(t)) for t in target])
    torch.testing.assert_close(logps, mixed.gather(1, at[:, None])[:, 0], rtol=0, atol=1e-14)
    reference[:, OPEN[0]] = -math.inf  # barred by one of them only
    rest = statistic(policy.log_softmax(-1), target, ref_logp=reference.log_softmax(-1), epsilon=0.2)
    assert not rest.isnan().any()
    assert rest[target != OPEN[0]].isfinite().all()


def test_the_mean_probability_of_a_drawn_token(logits):
    policy, _, target = logits
    expected = without(policy).softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(log_sum_p2(policy.log_softmax(-1), target), expected, rtol=0, atol=1e-14)
