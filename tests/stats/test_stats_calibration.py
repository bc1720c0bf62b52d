"""Calibration and trends: by hand, by simulation, and against numpy's own fits."""

import math

import numpy as np
import pytest
from scipy import stats

from afzal.lab import language
from afzal.stats.calibration import calibration, trend
from afzal.stats.intervals import wilson


def test_three_pairs_by_hand():
    gaps = np.array([math.log(3), -math.log(3), 0.0])  # favours the first at .75, the second at .75, neither
    result = calibration(gaps, np.array([1.0, 1.0, 0.5]))
    assert result.brier == pytest.approx((0.25**2 + 0.75**2 + 0) / 3)
    assert result.log_loss == pytest.approx((-math.log(0.75) - math.log(0.25) + math.log(2)) / 3)
    assert [(b.n, b.confidence, b.right) for b in result.bins] == [
        (1, pytest.approx(0.5), 0.5),
        (2, pytest.approx(0.75), 0.5),
    ]
    assert result.ece == pytest.approx(2 / 3 * 0.25)


def test_a_coin_on_certain_labels_has_a_brier_score_of_a_quarter():
    labels = np.array([1.0, 1.0, 0.0, 1.0])
    coin, nearly = calibration(np.zeros(4), labels), calibration(np.full(4, 1e-12), labels)
    assert coin.brier == pytest.approx(0.25)
    assert nearly.brier == pytest.approx(coin.brier)
    assert coin.brier_low is not None
    assert coin.brier_high is not None
    assert 0 < coin.brier_low < 0.25 < coin.brier_high
    half_sure = calibration(np.array([math.log(3), 0.0]), np.array([0.0, 0.9]))
    assert half_sure.brier == pytest.approx((0.75**2 + 0.4**2) / 2)


def test_which_response_stands_first_plays_no_part():
    rng = np.random.default_rng(0)
    gaps, p = rng.normal(size=200), rng.integers(0, 2, 200).astype(float)
    turned = rng.integers(0, 2, 200).astype(bool)
    one, other = calibration(gaps, p), calibration(np.where(turned, -gaps, gaps), np.where(turned, 1 - p, p))
    assert one.ece == pytest.approx(other.ece)
    assert one.brier == pytest.approx(other.brier)
    assert one.log_loss == pytest.approx(other.log_loss)


@pytest.mark.slow
def test_bradley_terry_labels_are_calibrated_and_doubled_scores_are_not():
    rng = np.random.default_rng(1)
    gaps = 2 * rng.normal(size=200_000)
    p = (rng.random(len(gaps)) < 1 / (1 + np.exp(-gaps))).astype(float)
    assert calibration(gaps, p).ece < 0.005
    sure = calibration(2 * gaps, p)
    assert sure.ece > 0.05
    assert all(b.right < b.confidence for b in sure.bins if b.n > 5000)
    assert sure.log_loss > calibration(gaps, p).log_loss


def test_extreme_gaps_stay_finite():
    result = calibration(np.array([1e6, -1e6]), np.array([1.0, 1.0]))
    assert result.log_loss == pytest.approx(5e5)
    assert (result.ece, result.brier) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one pair"):
        calibration(np.zeros(0), np.zeros(0))


def test_trend_is_the_least_squares_line():
    rng = np.random.default_rng(2)
    x = rng.integers(1, 60, 80)
    y = 0.03 * x + rng.normal(size=80)
    line, expected = trend(x, y), stats.linregress(x, y)
    assert line is not None
    assert (line.slope, line.slope_se, line.correlation) == pytest.approx(
        (expected.slope, expected.stderr, expected.rvalue)
    )
    assert line.n == 80


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([], [])])
def test_no_trend_where_there_is_none_to_measure(x, y):
    assert trend(np.array(x), np.array(y)) is None


def test_chance_alone_makes_an_error_and_its_size_is_exact():
    """Eight pairs at confidence 3/4: the number that is right is binomial(8, 3/4)."""
    k = np.arange(9)
    exact = float(stats.binom.pmf(k, 8, 0.75) @ np.abs(k / 8 - 0.75))
    result = calibration(np.full(8, math.log(3)), np.array([1.0] * 6 + [0.0] * 2))
    assert result.ece == pytest.approx(0.0, abs=1e-12)
    assert result.null == pytest.approx(exact, abs=0.01)
    assert result.null_high == pytest.approx(0.375, abs=1e-9)  # 3 or fewer of 8 right: .027; 4 or fewer: .114
    assert (result.n, result.prompts, result.ece_low) == (8, 8, 0.0)


def test_the_null_is_the_mean_error_of_calibrated_models_with_few_pairs_and_repeated_prompts():
    """20 pairs of a perfectly calibrated model have an error of .216; 100 pairs of 20 prompts one of about .1."""
    rng = np.random.default_rng(0)
    for per_prompt, n, mean in ((1, 20, 0.216), (5, 100, 0.105)):
        results = []
        for _ in range(150):
            gaps = rng.normal(0, 1.5, n)
            together = math.sqrt(0.5) * (np.repeat(rng.normal(size=n // per_prompt), per_prompt) + rng.normal(size=n))
            p = (stats.norm.cdf(together) < 1 / (1 + np.exp(-gaps))).astype(float)
            results.append(calibration(gaps, p, np.arange(n) // per_prompt))
        assert np.mean([c.ece for c in results]) == pytest.approx(mean, abs=0.01)
        assert np.mean([c.null for c in results]) == pytest.approx(np.mean([c.ece for c in results]), abs=0.01)
        assert np.mean([c.ece > c.null_high for c in results]) < 0.06
        assert np.mean([c.ece_low == 0 for c in results]) > 0.94


def test_the_error_agrees_with_the_exact_one_of_the_enumerable_language():
    """Scores are the true reward times a factor; all pairs of responses are listed for the exact error, and drawn."""
    prompts, rng = language.prompts()[1][:8], np.random.default_rng(3)
    policy, rewards = language.sft_policy(prompts), language.reward(prompts)
    which = np.repeat(np.arange(8), 250)
    for factor in (1.0, 2.5):
        exact = np.zeros(10)
        for pi, r in zip(policy, rewards, strict=True):
            kept = pi > 1e-5
            gap = r[kept][:, None] - r[kept][None, :]
            confidence = 1 / (1 + np.exp(-factor * np.abs(gap)))
            place = np.clip(np.floor((confidence - 0.5) * 20).astype(int), 0, 9)
            mass = pi[kept][:, None] * pi[kept][None, :] / pi[kept].sum() ** 2 / 8
            off = mass * (confidence - np.where(gap == 0, 0.5, 1 / (1 + np.exp(-np.abs(gap)))))
            exact += np.bincount(place.ravel(), off.ravel(), 10)
        truth = float(np.abs(exact).sum())
        first, second = (rewards[which, language.sample(policy, which, rng)] for _ in range(2))
        p = (rng.random(len(which)) < 1 / (1 + np.exp(second - first))).astype(float)
        result = calibration(factor * (first - second), p, which.tolist())
        assert result.ece_low is not None
        assert result.ece_high is not None
        assert result.ece_low <= truth <= result.ece_high
        assert result.ece == pytest.approx(truth, abs=0.04)
        assert (result.ece > result.null_high) == (factor > 1)


def test_a_weight_counts_as_that_many_pairs_and_none_as_no_pair():
    gaps, p = np.array([1.0, -0.4, 2.0, 0.3]), np.array([1.0, 1.0, 0.0, 1.0])
    weighted = calibration(gaps, p, weights=np.array([2.0, 1.0, 0.0, 1.0]))
    listed = calibration(gaps[[0, 0, 1, 3]], p[[0, 0, 1, 3]])
    figures = [(c.ece, c.brier, c.log_loss) for c in (weighted, listed)]
    assert figures[0] == pytest.approx(figures[1])
    assert (weighted.n, weighted.prompts) == (3, 3)


def test_a_bin_has_the_interval_of_its_prompts():
    gaps, p = np.full(40, 1.0), (np.arange(40) // 4 % 5 > 0).astype(float)
    (only,) = calibration(gaps, p, (np.arange(40) // 4).tolist()).bins
    assert (only.n, only.right) == (40, 0.8)
    assert (only.right_low, only.right_high) == pytest.approx(wilson(8, 10), abs=0.05)


def test_one_prompt_has_no_interval():
    result = calibration(np.array([1.0, 2.0]), np.array([1.0, 0.0]), ["a", "a"])
    assert (result.ece_low, result.ece_high, result.prompts) == (None, None, 1)


def test_a_slope_knows_that_points_share_prompts():
    """By hand: the slope without each prompt in turn (jackknife). Repeated points add no information."""
    rng = np.random.default_rng(4)
    x, prompt = rng.normal(size=30), np.arange(30) // 3
    y = 0.5 * x + rng.normal(size=10)[prompt]
    line = trend(x, y, prompt.tolist())
    assert line is not None
    without = np.array([np.polyfit(x[prompt != k], y[prompt != k], 1)[0] for k in range(10)])
    error = math.sqrt(9 / 10 * ((without - np.polyfit(x, y, 1)[0]) ** 2).sum())
    assert line.slope_se == pytest.approx(error)
    assert (line.low, line.high) == pytest.approx(stats.t.interval(0.95, 9, line.slope, error))
    again = trend(np.tile(x, 4), np.tile(y, 4), np.tile(prompt, 4).tolist())
    alone, alone_again = trend(x, y), trend(np.tile(x, 4), np.tile(y, 4))
    assert again is not None
    assert alone is not None
    assert alone_again is not None
    assert again.slope_se == pytest.approx(line.slope_se, rel=0.03)
    assert alone_again.slope_se < 0.55 * alone.slope_se
    assert trend(x, y, [k % 2 for k in range(30)]) is None


def test_the_log_loss_is_that_of_the_stated_probability():
    """sigma(ln 3) = 3/4: a label that agrees costs -ln(3/4), one that does not -ln(1/4)."""
    gap = np.array([math.log(3)])
    assert calibration(gap, np.array([1.0])).log_loss == pytest.approx(-math.log(0.75))
    assert calibration(gap, np.array([0.0])).log_loss == pytest.approx(-math.log(0.25))
