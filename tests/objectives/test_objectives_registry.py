"""The oldest objectives by hand, with their gradients; inputs and metrics. The others: test_objectives_by_hand.py."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_objectives import opinions, run, scored

from afzal import objectives
from afzal.objectives import Pairs, Scored, dpo, ipo, kto, pairs, soft_label
from afzal.objectives.metrics import add, means, tally

LN2 = math.log(2)


# closed forms by hand


def test_dpo_fixture():
    """pi = [-1, -2], ref = [-1.5, -1.5], beta = .1: h = 1, loss = -log sigma(.1), rewards = [.05, -.05]."""
    losses, rewards = dpo(scored([-1.0, -2.0]), scored([-1.5, -1.5]), opinions(1), beta=0.1)
    assert losses.tolist() == pytest.approx([0.644397], abs=1e-6)
    assert rewards.tolist() == pytest.approx([0.05, -0.05])


def test_dpo_gradient_at_the_start_is_half_beta():
    logps = torch.tensor([-3.0, -4.0], dtype=torch.float64, requires_grad=True)
    losses, _ = dpo(Scored(logps, torch.arange(2), 2), scored([-3.0, -4.0]), opinions(1), beta=0.3)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert gradient.tolist() == pytest.approx([-0.15, 0.15])


def test_dpo_gradient_is_beta_times_sigma_of_the_wrong_margin():
    """d/d pi_w = -beta sigma(r_l - r_w): repeated indices add up, and each pair's gradients sum to 0."""
    logps = torch.tensor([-3.0, -4.0, -2.0], dtype=torch.float64, requires_grad=True)
    given = pairs(torch.tensor([0, 0]), torch.tensor([1, 2]))
    losses, rewards = dpo(Scored(logps, torch.arange(3), 3), scored([-3.5, -3.0, -2.5]), given, beta=0.7)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    wrong = torch.sigmoid(rewards[given.yl_idxs] - rewards[given.yw_idxs])
    assert gradient.tolist() == pytest.approx([-0.7 * float(wrong.sum()), *(0.7 * wrong).tolist()])
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-12)


def test_soft_label_is_stationary_at_logit_p():
    u = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_label(u, torch.tensor([0.9])).sum(), u)
    assert float(gradient) == pytest.approx(0.0, abs=1e-7)
    assert float(u) == pytest.approx(2.197225, abs=1e-6)


def test_swapping_a_pair_with_p_changes_nothing():
    policy, reference = scored([-1.0, -5.0]), scored([-2.0, -2.5])
    for name in ("dpo", "ipo"):
        given = opinions(1, p=[0.3])
        swapped = Pairs(given.yl_idxs, given.yw_idxs, 1 - given.p, given.weight, given.margin, given.desirable)
        torch.testing.assert_close(run(name, policy, reference, given)[0], run(name, policy, reference, swapped)[0])


def test_dpo_of_minus_h_is_dpo_of_h_plus_u():
    one, _ = dpo(scored([2.0, 0.0]), scored([0.0, 0.0]), opinions(1), beta=0.5)
    other, _ = dpo(scored([0.0, 2.0]), scored([0.0, 0.0]), opinions(1), beta=0.5)
    assert float(other - one) == pytest.approx(1.0)


def test_ipo_by_hand():
    """tau = .1: (h - 5)^2 with h = 1 is 16; the minimum lies at h = (2p - 1) / (2 tau)."""
    losses, _ = ipo(scored([-1.0, -2.0]), scored([-1.5, -1.5]), opinions(1), beta=0.1)
    assert float(losses) == pytest.approx(16.0)
    h = torch.tensor([(2 * 0.8 - 1) / (2 * 0.1), 0.0], dtype=torch.float64, requires_grad=True)
    losses, _ = ipo(Scored(h, torch.arange(2), 2), scored([0.0, 0.0]), opinions(1, p=[0.8]), beta=0.1)
    (gradient,) = torch.autograd.grad(losses.sum(), h)
    assert gradient.abs().max() < 1e-9


def test_kto_by_hand():
    """rho = [2, -1], z0 = .5, beta = 1: 1 - sigma(1.5) and 1 - sigma(1.5); gradients at the start are -+ beta / 4."""
    statistic = torch.tensor(0.5, dtype=torch.float64)
    losses, rewards = kto(scored([2.0, -1.0]), scored([0.0, 0.0]), opinions(1), beta=1.0, statistic=statistic)
    assert losses.tolist() == pytest.approx([0.182426, 0.182426], abs=1e-6)
    assert rewards.tolist() == [2.0, -1.0]
    logps = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    start, _ = kto(
        Scored(logps, torch.arange(2), 2), scored([0.0, 0.0]), opinions(1), beta=0.4, statistic=statistic * 0
    )
    (gradient,) = torch.autograd.grad(start.sum(), logps)
    assert gradient.tolist() == pytest.approx([-0.1, 0.1])


def test_kto_clamps_a_negative_kl_estimate_and_weights_the_sides():
    given = opinions(1)
    args = (scored([1.0, 1.0]), scored([0.0, 0.0]), given)
    negative = kto(*args, statistic=torch.tensor(-3.0))[0]
    torch.testing.assert_close(negative, kto(*args, statistic=torch.tensor(0.0))[0])
    weighted = kto(*args, statistic=torch.tensor(0.0), desirable_weight=2.0, undesirable_weight=3.0)[0]
    torch.testing.assert_close(weighted, negative * torch.tensor([2.0, 3.0], dtype=torch.float64))


def test_sft_of_uniform_logits_is_log_vocabulary():
    tokens = torch.full((7,), -math.log(50.0))
    losses, _ = objectives.sft(Scored(tokens, torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2), None, opinions(1))
    assert losses.mean().item() == pytest.approx(math.log(50.0))


def test_parameters_are_read_from_the_signature():
    assert objectives.get("kto").parameters == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    assert objectives.get("sft").parameters == {}


def test_scored_sums_lengths_and_means():
    s = Scored(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 3)
    assert s.logps.tolist() == [-3.0, 0.0, -4.0]
    assert s.lengths.tolist() == [2.0, 0.0, 1.0]
    assert s.mean_logps.tolist() == [-1.5, 0.0, -4.0]


def test_metrics_are_sums_and_counts_and_ties_enter_neither_side():
    policy = scored([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], [1, 2, 1, 1, 1, 1])
    rewards = torch.tensor([1.0, 0.0, 2.0, 2.0, 0.0, 9.0])
    given = opinions(3, p=[1.0, 0.8, 0.5])
    sums: dict = {}
    add(sums, tally("pair", policy, rewards, given))
    add(sums, tally("pair", policy, rewards, given))
    assert {k: float(n) for k, (_, n) in sums.items()} == dict.fromkeys(sums, 4.0)
    averages = means(sums)
    assert averages["rewards/accuracies"] == pytest.approx(0.75)  # right, and equal rewards count one half
    assert averages["rewards/margins"] == pytest.approx(0.5)
    assert averages["logps/chosen"] == pytest.approx(-2.0)
    assert averages["lengths/rejected"] == pytest.approx(1.5)
