"""Metrics and running numbers that no loss reveals: signs, shares and constants worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from afzal.objectives import Pairs, Scored, advantages
from afzal.objectives.coupled import _beta_next
from afzal.objectives.inputs import pairs
from afzal.objectives.policy_gradient import _drift_metrics
from afzal.objectives.unpaired import _bco_pair_next, mismatched_kl


def scored(*logps: float) -> Scored:
    """Responses of one token each."""
    values = torch.tensor(logps, dtype=torch.float64)
    return Scored(values, torch.arange(len(logps)), len(logps))


def test_the_kl_of_mismatched_rows_is_policy_over_reference():
    total, count = mismatched_kl(scored(-1.0, -2.0), scored(-2.0, -2.5))
    assert (float(total), float(count)) == (1.5, 2.0)


def test_how_far_the_policy_has_moved():
    """Ratios 1/2, 1, 3/2 and 2: outside 0.8 to 1.2 are three of four; k3 of old to new is r - 1 - ln r."""
    ratios = [0.5, 1.0, 1.5, 2.0]
    means = {k: float(s) / float(n) for k, (s, n) in _drift_metrics(torch.tensor(ratios).log(), 0.2, 0.0).items()}
    assert means["policy/clipfrac"] == 0.75
    assert means["policy/ratio"] == pytest.approx(1.25)
    assert means["policy/approxkl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4)
    wide = {k: float(s) / float(n) for k, (s, n) in _drift_metrics(torch.tensor(ratios).log(), 0.2, 0.6).items()}
    assert wide["policy/clipfrac"] == 0.5  # 3/2 is inside 1 + 0.6


def test_advantages_discount_by_gamma_and_lambda():
    """Two steps without rewards but the last: delta_1 = gamma V_2 - V_1, delta_2 = R - V_2."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.5]])
    result = advantages.gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), gamma=0.8, lam=0.5)
    second = 1.0 - 0.5
    first = 0.8 * 0.5 - 0.25 + 0.8 * 0.5 * second
    assert result[0].tolist() == pytest.approx([first, second])


def test_group_normalised_advantages_divide_by_the_standard_deviation():
    result = advantages.group_normalised(torch.tensor([[1.0, 5.0]], dtype=torch.float64))
    assert result[0].tolist() == pytest.approx([-2 / math.sqrt(8), 2 / math.sqrt(8)], rel=1e-4)


def of_pairs(*p: float) -> Pairs:
    """Pair k is responses 2 k over 2 k + 1, with probability p."""
    first = torch.arange(0, 2 * len(p), 2)
    return pairs(first, first + 1, p=torch.tensor(p, dtype=torch.float64))


def test_the_running_shift_of_bco_leaves_ties_out():
    """Rewards (2, 0) of a decided pair and (8, 8) of a tie: the middle is 1, and a tenth of the way is gone."""
    policy, reference = scored(2.0, 0.0, 8.0, 8.0), scored(0.0, 0.0, 0.0, 0.0)
    moved = _bco_pair_next({"shift": 3.0}, policy, reference, of_pairs(1.0, 0.5), beta=1.0)
    assert moved["shift"] == pytest.approx(0.9 * 3.0 + 0.1 * 1.0)
    alone = _bco_pair_next({"shift": 3.0}, policy, reference, of_pairs(0.5, 0.5), beta=1.0)
    assert alone["shift"] == 3.0


def test_the_running_numbers_of_beta_dpo():
    """h is 5 and 1: mean 3, standard deviation (of all, not of a sample) 2; a tenth of the way each."""
    policy, reference = scored(5.0, 0.0, 1.0, 0.0), scored(0.0, 0.0, 0.0, 0.0)
    moved = _beta_next({"mean": 1.0, "std": 1.0, "updates": 4.0}, policy, reference, of_pairs(1.0, 1.0), beta=0.1)
    assert moved == pytest.approx({"mean": 0.9 + 0.3, "std": 0.9 + 0.2, "updates": 5.0})
