"""Comparing policies: values worked out by hand, and scipy's own intervals."""

import math

import numpy as np
import pytest
import scipy.stats

from afzal.lab import exact, language
from afzal.stats import comparing, intervals


def test_reward_at_a_kl_is_linear_between_points_and_nothing_is_extrapolated():
    kl, reward = [0.0, 1.0, 2.0], [0.0, 2.0, 3.0]
    assert comparing.at_kl(kl, reward, 0.5) == 1.0
    assert comparing.at_kl(kl, reward, 1.0) == 2.0
    assert comparing.at_kl(kl, reward, 1.25) == 2.25
    assert comparing.at_kl(kl, reward, 2.0) == 3.0
    assert comparing.at_kl(kl, reward, 2.001) is None
    assert comparing.at_kl([], [], 1.0) is None


def test_a_way_that_comes_by_a_kl_twice_counts_by_its_best_crossing():
    """Up to 2 nats at reward 4, back to 1 nat at reward 6: at 1.5 it was at 3 and then at 5."""
    assert comparing.at_kl([0.0, 2.0, 1.0], [0.0, 4.0, 6.0], 1.5) == 5.0
    assert comparing.at_kl([0.0, 2.0, 1.0], [0.0, 4.0, 1.0], 1.5) == 3.0
    assert comparing.at_kl([0.0, 1.0, 1.0], [0.0, 4.0, 7.0], 1.0) == 7.0


def test_intervals_over_seeds_are_students():
    values = [1.0, 2.0, 4.0]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    found = intervals.over_seeds(values)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((7 / 3, low, high, 3))


def test_one_seed_has_no_interval_and_none_is_an_error():
    assert intervals.over_seeds([2.5]) == intervals.Interval(2.5, None, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        intervals.over_seeds([])


def test_the_bootstrap_over_prompts_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    found = comparing.bootstrap(values, resamples=20_000, seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert comparing.bootstrap(values, resamples=500, seed=1) == comparing.bootstrap(values, resamples=500, seed=1)


def test_the_bootstrap_of_one_prompt_has_no_interval():
    assert comparing.bootstrap(np.array([3.0]), resamples=100, seed=0) == intervals.Interval(3.0, None, None, 1)


def test_wins_count_every_pair_of_answers_and_ties_half():
    """Of (1, 1), (1, 3), (2, 1), (2, 3): a tie, a loss, a win, a loss."""
    ours, theirs = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 3.0], [0.0, 0.0]])
    assert comparing.wins(ours, theirs).tolist() == [1.5 / 4, 0.5]
    assert (comparing.wins(ours, theirs) + comparing.wins(theirs, ours)).tolist() == [1.0, 1.0]
    assert comparing.wins(ours, ours).tolist() == [0.5, 0.5]


def test_wins_agree_with_the_exact_win_rate():
    """Answers of two policies of the enumerable language, so many that chance is small."""
    prompts = language.prompts()[1][:8]
    rewards, rng = language.reward(prompts), np.random.default_rng(0)
    start = np.log(language.sft_policy(prompts))
    better = exact.optimum(start, rewards, 2.0)
    which = np.repeat(np.arange(8), 2000)
    drawn = [rewards[which, language.sample(np.exp(p), which, rng)].reshape(8, 2000) for p in (better, start)]
    found = comparing.wins(*drawn)
    assert found.mean() == pytest.approx(exact.win_rate(better, start, rewards), abs=0.01)


def test_differences_pair_the_prompts():
    """An effect of 1 on every prompt has no spread, however much the prompts differ; unpaired it would drown."""
    theirs = np.arange(40.0)[:, None] * 10
    paired = comparing.bootstrap(comparing.differences(theirs + 1, theirs), resamples=500, seed=0)
    assert (paired.value, paired.low, paired.high) == (1.0, 1.0, 1.0)
    shuffled = np.random.default_rng(0).permutation(theirs)
    unpaired = comparing.bootstrap(comparing.differences(theirs + 1, shuffled), resamples=500, seed=0)
    assert unpaired.low is not None
    assert unpaired.low < 0
    with pytest.raises(ValueError, match="prompts"):
        comparing.differences(theirs, theirs[:-1])


def test_errors_are_those_of_prompts_not_of_answers():
    """Ten equal answers to a prompt are one fact about it."""
    once = np.array([[0.0], [1.0], [2.0]])
    assert comparing.standard_error(once.repeat(10, 1)) == pytest.approx(1 / math.sqrt(3))
    assert comparing.standard_error(once[:1]) is None


def test_totals_carry_sum_and_count():
    found = comparing.total(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert (found.sum, found.count, found.mean) == (12.0, 4, 3.0)
    assert math.isnan(comparing.total(np.zeros((0, 2))).mean)


def test_levels_are_what_half_of_the_methods_reach():
    assert comparing.matched_levels([4.129, 2.08, 9.0]) == [1.0, 2.0, 4.1]
    assert comparing.matched_levels([0.0, 3.0]) == [0.75, 1.5, 3.0]
    assert comparing.matched_levels([0.0, 0.0]) == []


def test_best_of_takes_the_highest_of_each_group_and_the_first_of_equals():
    scores = np.array([[1.0, 5.0, 5.0, 0.0, 2.0, 2.0, 9.0]])
    assert comparing.best_of(scores, 3, 2).tolist() == [[1, 4]]
    assert comparing.best_of(scores, 2, 3).tolist() == [[1, 2, 4]]
    with pytest.raises(ValueError, match="need 8 candidates"):
        comparing.best_of(scores, 4, 2)


def test_best_of_n_gives_the_exact_reward_and_stays_below_its_bound_in_kl():
    prompts = language.prompts()[1][:4]
    rewards, rng = language.reward(prompts), np.random.default_rng(0)
    start = np.log(language.sft_policy(prompts))
    for n in (2, 4, 16):
        policy = exact.best_of(start, rewards, n)
        which = np.repeat(np.arange(4), 2000 * n)
        scores = rewards[which, language.sample(np.exp(start), which, rng)].reshape(4, 2000 * n)
        taken = np.take_along_axis(scores, comparing.best_of(scores, n, 2000), 1)
        assert taken.mean() == pytest.approx(exact.expected(policy, rewards), abs=0.03)
        assert 0.5 * comparing.best_of_kl(n) < exact.kl(policy, start) <= comparing.best_of_kl(n)
    assert comparing.best_of_kl(2) == pytest.approx(math.log(2) - 0.5)
