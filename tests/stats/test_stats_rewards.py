"""Distances between rewards: invariances, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from afzal.lab import exact, language
from afzal.stats.rewards import epic, ordering, pooled_spearman, regret

X, Y = 40, 12


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    return rng.normal(size=X * Y), [k // Y for k in range(X * Y)], rng


def test_epic_sees_neither_scale_nor_a_constant_per_prompt(world):
    r, prompts, rng = world
    shift = rng.normal(scale=1e3, size=X)[np.array(prompts)]
    assert epic(r, 3 * r + shift, prompts).value == pytest.approx(0, abs=1e-6)
    assert epic(r, -r, prompts).value == pytest.approx(1, abs=1e-12)
    assert epic(r, -0.1 * r + shift, prompts).value == pytest.approx(1, abs=1e-12)
    # while the pooled correlation of the equivalent pair is next to nothing
    assert abs(np.corrcoef(r, 3 * r + shift)[0, 1]) < 0.2


def test_epic_of_unrelated_rewards_is_the_root_of_a_half(world):
    r, prompts, rng = world
    distance = epic(r, rng.normal(size=X * Y), prompts)
    assert distance.value == pytest.approx(math.sqrt(0.5), abs=0.05)
    low, high = distance.ends
    assert low < math.sqrt(0.5) < high
    assert distance.n == X


def test_epic_by_hand():
    # centred: (-1, 0, 1) and (-1, 1, 0): rho = 1 / 2, so sqrt(1 / 4)
    assert epic(np.array([0.0, 1, 2]), np.array([5.0, 7, 6]), ["a"] * 3).value == pytest.approx(0.5, abs=1e-12)
    # a response of weight 0 is ignored
    truth, other = np.array([0.0, 1, 2, 99]), np.array([5.0, 7, 6, -99])
    assert epic(truth, other, ["a"] * 4, np.array([1.0, 1, 1, 0])).value == pytest.approx(0.5, abs=1e-12)


def test_epic_of_a_constant_is_unknown():
    assert math.isnan(epic(np.array([0.0, 1]), np.array([7.0, 7]), ["a", "a"]).value)


def test_ordering_is_that_of_scipy_within_prompts(world):
    r, prompts, rng = world
    other = np.round(r + rng.normal(size=X * Y), 0)
    rows = np.array(prompts)
    taus = [scipy_stats.kendalltau(r[rows == x], other[rows == x]).statistic for x in range(X)]
    rhos = [scipy_stats.spearmanr(r[rows == x], other[rows == x]).statistic for x in range(X)]
    order = ordering(r, other, prompts)
    assert order.kendall.value == pytest.approx(np.mean(taus), abs=1e-12)
    assert order.spearman.value == pytest.approx(np.mean(rhos), abs=1e-12)
    assert order.prompts == X


def test_ordering_leaves_out_what_the_truth_does_not_order():
    truth, inferred = np.array([1.0, 1, 0, 5, 5]), np.array([3.0, 1, 2, 0, 9])
    order = ordering(truth, inferred, ["a", "a", "a", "b", "b"])
    # of prompt a the pairs (0, 2) right and (1, 2) wrong; of prompt b none
    assert order.accuracy.value == 0.5
    assert order.prompts == 1
    assert ordering(truth, np.zeros(5), ["a"] * 5).accuracy.value == 0.5
    assert ordering(np.zeros(2), np.zeros(2), ["a", "a"]).accuracy is None


def test_pooled_spearman_is_scipys(world):
    r, prompts, rng = world
    other = np.round(r + rng.normal(size=X * Y), 1)
    assert pooled_spearman(r, other, prompts).value == pytest.approx(scipy_stats.spearmanr(r, other).statistic)


def test_regret_is_beta_times_the_kl_of_the_induced_policy():
    prompts = language.prompts()[1][:3]
    base, truth = np.log(language.sft_policy(prompts)), language.reward(prompts)
    inferred = truth + np.random.default_rng(1).normal(size=truth.shape)
    best, induced = (exact.optimum(base, r, 0.5) for r in (truth, inferred))
    value = lambda p: exact.expected(p, truth) - 0.5 * exact.kl(p, base)  # noqa: E731
    assert regret(base, truth, inferred, 0.5).value == pytest.approx(value(best) - value(induced), abs=1e-9)
    assert regret(base, truth, truth + np.arange(3)[:, None], 0.5).value == pytest.approx(0, abs=1e-12)
    assert regret(base, truth, 3 * truth, 0.5).value > 0.01


def test_the_implicit_reward_of_the_optimum_is_the_reward_up_to_a_constant_per_prompt():
    prompts = language.prompts()[1]
    base, truth, beta = exact.normalise(np.log(language.sft_policy(prompts))), language.reward(prompts), 0.3
    gap = beta * (exact.optimum(base, truth, beta) - base) - truth
    assert np.ptp(gap, axis=1).max() < 1e-6
    assert np.ptp(gap.mean(1)) > 0.01  # and the constants of the prompts differ
    keys = np.repeat(np.arange(len(prompts)), truth.shape[1]).tolist()
    assert epic(truth.ravel(), (gap + truth).ravel(), keys, np.exp(base).ravel()).value < 1e-6
