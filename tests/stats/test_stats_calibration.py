"""Calibration and trends: by hand, by simulation, and against numpy's own fits."""

import math

import numpy as np
import pytest
from scipy import stats

from afzal.stats.calibration import calibration, trend


def test_three_pairs_by_hand():
    gaps = np.array([math.log(3), -math.log(3), 0.0])  # favours the first at .75, the second at .75, neither
    found = calibration(gaps, np.array([1.0, 1.0, 0.5]))
    assert found.brier == pytest.approx((0.25**2 + 0.75**2 + 0) / 3)
    assert found.log_loss == pytest.approx((-math.log(0.75) - math.log(0.25) + math.log(2)) / 3)
    assert [(b.n, b.confidence, b.right) for b in found.bins] == [
        (1, pytest.approx(0.5), 0.5),
        (2, pytest.approx(0.75), 0.5),
    ]
    assert found.ece == pytest.approx(2 / 3 * 0.25)


def test_which_response_stands_first_plays_no_part():
    rng = np.random.default_rng(0)
    gaps, p = rng.normal(size=200), rng.integers(0, 2, 200).astype(float)
    turned = rng.integers(0, 2, 200).astype(bool)
    one, other = calibration(gaps, p), calibration(np.where(turned, -gaps, gaps), np.where(turned, 1 - p, p))
    assert one.ece == pytest.approx(other.ece)
    assert one.brier == pytest.approx(other.brier)
    assert one.log_loss == pytest.approx(other.log_loss)


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
    found = calibration(np.array([1e6, -1e6]), np.array([1.0, 1.0]))
    assert found.log_loss == pytest.approx(5e5)
    assert (found.ece, found.brier) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one pair"):
        calibration(np.zeros(0), np.zeros(0))


def test_trend_is_the_least_squares_line():
    rng = np.random.default_rng(2)
    x = rng.integers(1, 60, 80)
    y = 0.03 * x + rng.normal(size=80)
    found, expected = trend(x, y), stats.linregress(x, y)
    assert found is not None
    assert (found.slope, found.slope_se, found.correlation) == pytest.approx(
        (expected.slope, expected.stderr, expected.rvalue)
    )
    assert found.n == 80


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([], [])])
def test_no_trend_where_there_is_none_to_measure(x, y):
    assert trend(np.array(x), np.array(y)) is None
