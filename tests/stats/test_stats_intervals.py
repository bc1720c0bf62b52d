"""Intervals: textbook values, closed forms, scipy's own, and what must not change them."""

import math

import pytest
from scipy import stats

from afzal.stats.intervals import Cluster, clustered, mean, share, wilson


def test_wilson_against_known_values():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    low, high = wilson(37, 100)
    assert wilson(63, 100) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_is_that_of_the_textbook():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert wilson(0, 5)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(5, 5)[1] == pytest.approx(1.0, abs=1e-12)


def test_wilson_by_its_closed_form():
    low, high = wilson(50, 100)  # closed form: (0.5 + 1.9207/100 ± 1.95996 sqrt(.0025 + .0096)) / (1 + .038415)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=2e-5)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-4)


def test_the_share_of_independent_rows_is_wilsons_own():
    found = share(clustered(range(10), [1.0] * 8 + [0.0] * 2))
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.8, *wilson(8, 10), 10))
    weighted = share(clustered(range(4), [1, 1, 0, 1], [3.0, 1, 1, 1]))
    assert weighted.value == 5 / 6
    assert (weighted.low, weighted.high) == pytest.approx(wilson(5 / 6 * 3, 3))  # Kish: 6^2 / (9 + 3) rows


def test_rows_that_repeat_their_prompt_are_worth_one():
    """40 prompts of 10 equal rows each: as 40 rows, but for Student's quantile; 400 rows would be far too sure."""
    values = [float(k % 4 > 0) for k in range(40) for _ in range(10)]
    found = share(clustered([k // 10 for k in range(400)], values))
    low, high = wilson(30, 40)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.low < low < wilson(300, 400)[0]


def test_rows_that_differ_within_their_prompt_as_between_prompts_are_worth_themselves():
    """Each of 40 prompts has exactly 3 of 4 right: no spread between prompts, so the design effect is 1."""
    found = share(clustered([k // 4 for k in range(160)], [float(k % 4 > 0) for k in range(160)]))
    assert (found.low, found.high) == pytest.approx(wilson(120, 160), abs=1e-12)


def test_a_share_of_one_is_as_sure_as_its_prompts():
    """Whether rows of a prompt differ cannot be seen where all are right, so the prompts are what counts."""
    few, many = (share(clustered([k % prompts for k in range(100)], [1.0] * 100)) for prompts in (5, 50))
    assert (few.high, many.high) == pytest.approx((1.0, 1.0))
    assert few.low < wilson(5, 5)[0] + 1e-9
    assert many.low == pytest.approx(wilson(50, 50)[0], abs=0.005)


def test_a_share_does_not_change_when_right_and_wrong_change_places():
    keys, values = [k // 3 for k in range(30)], [float((k * 7) % 5 > 1) for k in range(30)]
    ours, theirs = share(clustered(keys, values)), share(clustered(keys, [1 - v for v in values]))
    assert (ours.low, ours.high) == pytest.approx((1 - theirs.high, 1 - theirs.low))


def test_clusters_add_up_weights_and_their_squares():
    assert clustered("aba", [1.0, 0.5, 0.0], [2.0, 1.0, 3.0]) == [Cluster(2.0, 5.0, 13.0), Cluster(0.5, 1.0, 1.0)]
    with pytest.raises(ValueError, match="at least one row"):
        share([])


def test_the_mean_over_prompts_is_a_ratio_of_sums():
    """Prompts a (1, 3) and b (8): mean 4, sums less n times the mean -4 and 4; (16 + 16) * 2 / 1 / 3^2."""
    found = mean(clustered("aab", [1.0, 3.0, 8.0]))
    assert (found.mean, found.se) == pytest.approx((4.0, (64**0.5) / 3))
    assert math.isnan(mean(clustered("aa", [1.0, 3.0])).se)


def test_the_expansion_of_students_quantile_meets_scipys():
    from scipy.special import stdtrit

    from afzal.stats.intervals import t95

    assert [t95(df) for df in (1000, 1234.5, 1e5, 1e9)] == pytest.approx(
        [float(stdtrit(df, 0.975)) for df in (1000, 1234.5, 1e5, 1e9)], abs=1e-13
    )


def test_a_share_by_hand():
    """Four prompts of two rows, all right but one. Variance over prompts (3 x .25^2 + .75^2) 4/3 = 1; of independent
    rows 8 x 7/8 x 1/8 = .875; all alike would be 2. Effect (1 + .5 x 2) / (.875 + .5) = 16/11, so 5.5 rows."""
    found = share(clustered([0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1, 1, 0]))
    worth = 5.5 * (stats.t.ppf(0.975, 7) / stats.t.ppf(0.975, 4.5)) ** 2
    assert (found.low, found.high) == pytest.approx(wilson(7 / 8 * worth, worth))
