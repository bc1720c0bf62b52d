"""Comparing policies: values worked out by hand, and scipy's own intervals."""

import math

import numpy as np
import pytest
import scipy.stats

from afzal.lab import exact, language
from afzal.stats import intervals, policy_comparison


def reward_at(kl, reward, at):
    weights = policy_comparison.at_kl(kl, at)
    return None if weights is None else float(weights @ np.array(reward))


def test_reward_at_a_kl_is_linear_between_points_and_nothing_is_extrapolated():
    kl, reward = [0.0, 1.0, 2.0], [0.0, 2.0, 3.0]
    assert reward_at(kl, reward, 0.5) == 1.0
    assert reward_at(kl, reward, 1.0) == 2.0
    assert reward_at(kl, reward, 1.25) == 2.25
    assert reward_at(kl, reward, 2.0) == 3.0
    assert reward_at(kl, reward, 2.001) is None
    assert policy_comparison.at_kl([], 1.0) is None
    assert (policy_comparison.reached(kl), policy_comparison.reached([])) == (2.0, 0.0)


def test_a_kl_that_goes_back_is_pooled_and_the_reward_plays_no_part():
    """0, 2, 1 has the nearest rising sequence 0, 1.5, 1.5: at 1.5 the reward is the mean of both, whichever first."""
    assert reward_at([0.0, 2.0, 1.0], [0.0, 4.0, 6.0], 1.5) == 5.0
    assert reward_at([0.0, 2.0, 1.0], [0.0, 6.0, 4.0], 1.5) == 5.0
    assert reward_at([0.0, 2.0, 1.0], [0.0, 4.0, 6.0], 0.75) == 2.5
    assert policy_comparison.reached([0.0, 2.0, 1.0]) == 1.5
    # 1, 3, 2, 1, 4: 3, 2 and 1 have mean 2; between 2 and 4 a half of each side
    assert policy_comparison.at_kl([1.0, 3.0, 2.0, 1.0, 4.0], 3.0) == pytest.approx([0, 1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_noise_does_not_raise_the_reward_at_a_matched_kl():
    """20 snapshots that hover at 2 nats, where the reward is 2.00: the best crossing gives 2.17, the fit 2.00."""
    rng, values = np.random.default_rng(0), []
    true = np.minimum(np.linspace(0, 1, 21) / 0.15, 2.02)
    for _ in range(400):
        kl, reward = (true + sd * rng.normal(size=21) * (true > 0) for sd in (0.1, 0.15))
        if (value := reward_at(kl.tolist(), reward, 2.0)) is not None:
            values.append(value)
    assert len(values) > 360
    assert np.mean(values) == pytest.approx(2.0, abs=0.02)


def test_matched_kl_agrees_with_the_exact_optimum_of_the_enumerable_language():
    """Along the optima pi_ref e^(r/beta), reward and KL are exact; sampled snapshots meet the curve at a level."""
    prompts, rng = language.prompts()[1][:8], np.random.default_rng(0)
    start, rewards = np.log(language.sft_policy(prompts)), language.reward(prompts)
    betas = [math.inf, *np.geomspace(8, 0.8, 12)]
    path = [start if math.isinf(b) else exact.optimum(start, rewards, b) for b in betas]
    kl = [exact.kl(p, start) for p in path]
    level = 0.5
    at = next(k for k in range(len(kl)) if kl[k] > level)
    part = (level - kl[at - 1]) / (kl[at] - kl[at - 1])
    truth = (1 - part) * exact.expected(path[at - 1], rewards) + part * exact.expected(path[at], rewards)
    which, values = np.repeat(np.arange(8), 40), []
    for _ in range(60):
        drawn = [language.sample(np.exp(p), which, rng) for p in path]
        sampled = [float((p - start)[which, y].mean()) for p, y in zip(path, drawn, strict=True)]
        if (weights := policy_comparison.at_kl(sampled, level)) is not None:
            values.append(float(weights @ [rewards[which, y].mean() for y in drawn]))
    assert len(values) == 60
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / math.sqrt(60) + 0.02)


def test_intervals_over_seeds_are_students():
    values = [1.0, 2.0, 4.0]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    mean = intervals.over_seeds(values)
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((7 / 3, low, high, 3))


def test_one_seed_has_no_interval_and_none_is_an_error():
    assert intervals.over_seeds([2.5]) == intervals.Interval(2.5, None, None, 1)
    with pytest.raises(ValueError, match="at least one value"):
        intervals.over_seeds([])


def test_the_bootstrap_over_prompts_takes_the_tails_that_students_t_would():
    """Hesterberg 2015: at n = 60, level Phi(-sqrt(60 / 59) 2.001) = .0219 in place of .025; scipy draws the same."""
    values = np.random.default_rng(0).gamma(2.0, size=60)
    mean = policy_comparison.bootstrap(values, resamples=20_000, seed=1)
    tail = scipy.stats.norm.cdf(-math.sqrt(60 / 59) * scipy.stats.t.ppf(0.975, 59))
    assert tail == pytest.approx(0.0219, abs=1e-4)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        confidence_level=1 - 2 * tail,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert policy_comparison.bootstrap(values, resamples=500, seed=1) == policy_comparison.bootstrap(
        values, resamples=500, seed=1
    )


def test_over_seeds_and_prompts_by_hand():
    """Two seeds, two prompts, (1, 2; 3, 6): seed means 1.5, 4.5, prompt means 2, 4; the rest is .5 in every cell."""
    mean = policy_comparison.over_seeds_and_prompts(np.array([[1.0, 2.0], [3.0, 6.0]]))
    seeds, prompts, noise = 4.5 / 2, 2.0 / 2, 4 * 0.25 / 4
    half = scipy.stats.t.ppf(0.975, 1) * math.sqrt(prompts + seeds - noise)
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((3.0, 3 - half, 3 + half, 2))
    # seeds that differ less than their noise: (1, 4; 2, 3) has equal means, so prompts alone count, 1.5 and 3.5
    mean = policy_comparison.over_seeds_and_prompts(np.array([[1.0, 4.0], [2.0, 3.0]]))
    assert mean.high == pytest.approx(2.5 + scipy.stats.t.ppf(0.975, 1) * math.sqrt(2.0 / 2))
    alone = policy_comparison.over_seeds_and_prompts(np.array([[1.0], [2.0], [4.0]]))
    assert (alone.low, alone.high) == pytest.approx(intervals.over_seeds([1.0, 2.0, 4.0]).ends)


def test_with_one_seed_the_prompts_are_what_there_is():
    values = np.array([[1.0, 2.0, 4.0]])
    low, high = scipy.stats.t.interval(0.95, 2, loc=values.mean(), scale=scipy.stats.sem(values[0]))
    mean = policy_comparison.over_seeds_and_prompts(values)
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((7 / 3, low, high, 3))
    assert policy_comparison.over_seeds_and_prompts(np.array([[2.0]])) == intervals.Interval(2.0, None, None, 1)
    same = policy_comparison.over_seeds_and_prompts(np.ones((2, 3)))
    assert (same.low, same.high) == (1.0, 1.0)


def test_the_bootstrap_of_one_prompt_has_no_interval():
    assert policy_comparison.bootstrap(np.array([3.0]), resamples=100, seed=0) == intervals.Interval(3.0, None, None, 1)


def test_wins_count_every_pair_of_answers_and_ties_half():
    """Of (1, 1), (1, 3), (2, 1), (2, 3): a tie, a loss, a win, a loss."""
    ours, theirs = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 3.0], [0.0, 0.0]])
    assert policy_comparison.wins(ours, theirs).tolist() == [1.5 / 4, 0.5]
    assert (policy_comparison.wins(ours, theirs) + policy_comparison.wins(theirs, ours)).tolist() == [1.0, 1.0]
    assert policy_comparison.wins(ours, ours).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("samples", [2, 4, 8])
def test_wins_by_common_random_numbers_agree_with_the_exact_win_rate(samples):
    """Both policies invert the same uniform numbers, as the product draws; 4000 prompts, so that chance is small."""
    prompts = language.prompts()[1][:8]
    rewards, rng = language.reward(prompts), np.random.default_rng(0)
    start = np.log(language.sft_policy(prompts))
    better = exact.optimum(start, rewards, 2.0)
    which = np.repeat(np.arange(8), 4000 // 8)
    uniform = rng.random((len(which), samples))

    def drawn(log_policy):
        edges = np.exp(log_policy).cumsum(1)
        return np.stack([rewards[w, np.searchsorted(edges[w], u)] for w, u in zip(which, uniform, strict=True)])

    truth, (ours, theirs) = exact.win_rate(better, start, rewards), (drawn(better), drawn(start))
    apart = policy_comparison.same_draws(samples, samples)
    assert policy_comparison.wins(ours, theirs, apart).mean() == pytest.approx(truth, abs=0.012)
    coupled = np.mean([(ours[:, k] > theirs[:, k]) + 0.5 * (ours[:, k] == theirs[:, k]) for k in range(samples)])
    assert abs(coupled - truth) > 0.02  # the result of pairs with the same number
    four = drawn(better)[:, : samples // 2 * 2].reshape(len(which), samples // 2, 2).max(2)
    best, pair = exact.best_of(better, rewards, 2), policy_comparison.same_draws(samples // 2, samples, 2, 1)
    if samples > 2:
        assert policy_comparison.wins(four, theirs, pair).mean() == pytest.approx(
            exact.win_rate(best, start, rewards), abs=0.012
        )


def test_which_answers_share_random_numbers():
    """Answer 0 of best-of-2 is made of draws 0 and 1, answer 1 of draws 2 and 3."""
    assert policy_comparison.same_draws(2, 2).tolist() == [[True, False], [False, True]]
    assert policy_comparison.same_draws(2, 3, 2, 1).tolist() == [[True, True, False], [False, False, True]]
    assert policy_comparison.same_draws(3, 2, 1, 2).tolist() == [[True, False], [True, False], [False, True]]
    assert policy_comparison.same_draws(2, 2, 2, 4).tolist() == [[True, False], [True, False]]


def test_coupled_pairs_are_left_out_of_wins():
    """Of (0, 0) tie, (0, 1) loss, (1, 0) win, (1, 1) loss the diagonal goes: a half is left."""
    ours, theirs = np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])
    assert policy_comparison.wins(ours, theirs, policy_comparison.same_draws(2, 2)).tolist() == [0.5]
    assert policy_comparison.wins(ours, theirs).tolist() == [1.5 / 4]
    with pytest.raises(ValueError, match="independently"):
        policy_comparison.wins(ours[:, :1], theirs[:, :1], policy_comparison.same_draws(1, 1))


def test_a_share_of_wins_is_over_prompts_and_never_without_width():
    share = policy_comparison.share_of_wins(np.array([1.0, 0.5, 0.0, 0.5]), 4)
    assert (share.value, share.n) == (0.5, 4)
    assert share.low is not None
    assert share.high == pytest.approx(1 - share.low)
    assert share.low < intervals.wilson(8, 16)[0]
    always = policy_comparison.share_of_wins(np.ones(20), 12)
    assert (always.value, always.high) == pytest.approx((1.0, 1.0))
    assert always.low == pytest.approx(intervals.wilson(20, 20)[0], abs=0.02)


def test_differences_pair_the_prompts():
    """An effect of 1 on every prompt has no spread, however much the prompts differ; unpaired it would drown."""
    theirs = np.arange(40.0)[:, None] * 10
    paired = policy_comparison.bootstrap(policy_comparison.differences(theirs + 1, theirs), resamples=500, seed=0)
    assert (paired.value, paired.low, paired.high) == (1.0, 1.0, 1.0)
    shuffled = np.random.default_rng(0).permutation(theirs)
    unpaired = policy_comparison.bootstrap(policy_comparison.differences(theirs + 1, shuffled), resamples=500, seed=0)
    assert unpaired.low is not None
    assert unpaired.low < 0
    with pytest.raises(ValueError, match="prompts"):
        policy_comparison.differences(theirs, theirs[:-1])


def test_errors_are_those_of_prompts_not_of_answers():
    """Ten equal answers to a prompt are one observation."""
    once = np.array([[0.0], [1.0], [2.0]])
    assert policy_comparison.standard_error(once.repeat(10, 1)) == pytest.approx(1 / math.sqrt(3))
    assert policy_comparison.standard_error(once[:1]) is None


def test_totals_carry_sum_and_count():
    sums = policy_comparison.total(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert (sums.sum, sums.count, sums.mean) == (12.0, 4, 3.0)
    assert math.isnan(policy_comparison.total(np.zeros((0, 2))).mean)


def test_levels_are_what_half_of_the_methods_reach():
    assert policy_comparison.matched_levels([4.129, 2.08, 9.0]) == [1.0, 2.0, 4.1]
    assert policy_comparison.matched_levels([0.0, 3.0]) == [0.75, 1.5, 3.0]
    assert policy_comparison.matched_levels([0.0, 0.0]) == []


def test_best_of_takes_the_highest_of_each_group_and_the_first_of_equals():
    scores = np.array([[1.0, 5.0, 5.0, 0.0, 2.0, 2.0, 9.0]])
    assert policy_comparison.best_of(scores, 3, 2).tolist() == [[1, 4]]
    assert policy_comparison.best_of(scores, 2, 3).tolist() == [[1, 2, 4]]
    with pytest.raises(ValueError, match="need 8 candidates"):
        policy_comparison.best_of(scores, 4, 2)


def test_best_of_n_gives_the_exact_reward_and_stays_below_its_bound_in_kl():
    prompts = language.prompts()[1][:4]
    rewards, rng = language.reward(prompts), np.random.default_rng(0)
    start = np.log(language.sft_policy(prompts))
    for n in (2, 4, 16):
        policy = exact.best_of(start, rewards, n)
        which = np.repeat(np.arange(4), 2000 * n)
        scores = rewards[which, language.sample(np.exp(start), which, rng)].reshape(4, 2000 * n)
        taken = np.take_along_axis(scores, policy_comparison.best_of(scores, n, 2000), 1)
        assert taken.mean() == pytest.approx(exact.expected(policy, rewards), abs=0.03)
        assert 0.5 * policy_comparison.best_of_kl(n) < exact.kl(policy, start) <= policy_comparison.best_of_kl(n)
    assert policy_comparison.best_of_kl(2) == pytest.approx(math.log(2) - 0.5)


def test_a_share_of_verdicts_of_one_seed_is_that_over_prompts_and_leaves_out_no_verdict():
    share = policy_comparison.share_of_verdicts(np.array([[1.0, 1.0, 0.0, 0.5, math.nan]]))
    assert share is not None
    assert (share.value, share.n) == (2.5 / 4, 4)
    assert (share.low, share.high) == pytest.approx(intervals.wilson(2.5, 4))
    assert policy_comparison.share_of_verdicts(np.full((2, 3), math.nan)) is None


def test_a_share_of_verdicts_is_as_unsure_as_its_seeds_and_never_sure_of_all():
    """Two seeds that disagree on every prompt: over prompts a half is certain; over two seeds nothing is known."""
    apart = policy_comparison.share_of_verdicts(np.stack([np.ones(40), np.zeros(40)]))
    assert apart is not None
    assert (apart.value, apart.low, apart.high) == (0.5, 0.0, 1.0)
    every = policy_comparison.share_of_verdicts(np.ones((3, 10)))
    assert every is not None
    assert (every.low, every.high) == pytest.approx(intervals.wilson(10, 10))
