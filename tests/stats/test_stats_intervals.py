"""Intervals: textbook values, closed forms, scipy's intervals, and invariances."""

import math

import numpy as np
import pytest
from scipy import stats

from afzal.stats.intervals import Z95, Cluster, clustered, mean, share, wilson


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
    assert {wilson(0, n)[0] for n in range(1, 99)} == {0.0}  # exactly: a page would say 5.6e-17
    assert {wilson(n, n)[1] for n in range(1, 99)} == {1.0}
    assert share(clustered("abc", [0.0] * 3)).low == 0


def test_wilson_by_its_closed_form():
    low, high = wilson(50, 100)  # closed form: (0.5 + 1.9207/100 ± 1.95996 sqrt(.0025 + .0096)) / (1 + .038415)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=2e-5)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-4)


def test_the_share_of_independent_rows_is_wilsons_own():
    rate = share(clustered(range(10), [1.0] * 8 + [0.0] * 2))
    assert (rate.value, rate.low, rate.high, rate.n) == pytest.approx((0.8, *wilson(8, 10), 10))
    weighted = share(clustered(range(4), [1, 1, 0, 1], [3.0, 1, 1, 1]))
    assert weighted.value == 5 / 6
    assert (weighted.low, weighted.high) == pytest.approx(wilson(5 / 6 * 3, 3))  # Kish: 6^2 / (9 + 3) rows


def test_rows_that_repeat_their_prompt_are_worth_one():
    """40 prompts of 10 equal rows each: as 40 rows; 400 rows would be far too sure."""
    values = [float(k % 4 > 0) for k in range(40) for _ in range(10)]
    rate = share(clustered([k // 10 for k in range(400)], values))
    assert rate.value == 0.75
    assert (rate.low, rate.high) == pytest.approx(wilson(30, 40), abs=1e-12)
    assert rate.low < wilson(300, 400)[0]


def test_rows_that_differ_within_their_prompt_as_between_prompts_are_worth_themselves():
    """Each of 40 prompts has exactly 3 of 4 right: no spread between prompts, so the design effect is 1."""
    rate = share(clustered([k // 4 for k in range(160)], [float(k % 4 > 0) for k in range(160)]))
    assert (rate.low, rate.high) == pytest.approx(wilson(120, 160), abs=1e-12)


@pytest.mark.parametrize("prompts", [1, 2, 5, 50])
def test_a_share_of_one_is_as_sure_as_its_prompts(prompts):
    """If all rows are right, differences within a prompt cannot be seen, so the prompts count."""
    rate = share(clustered([k % prompts for k in range(100)], [1.0] * 100))
    assert (rate.low, rate.high) == pytest.approx(wilson(prompts, prompts), abs=1e-12)
    none = share(clustered([k % prompts for k in range(100)], [0.0] * 100))
    assert (none.low, none.high) == pytest.approx(wilson(0, prompts), abs=1e-12)


def test_one_prompt_is_one_row_at_most():
    """The variance over prompts is unknown, so the rows may all be alike."""
    rate = share(clustered("aaaaa", [1, 1, 0, 0, 0]))
    assert (rate.value, rate.n) == (0.4, 1)
    assert (rate.low, rate.high) == pytest.approx(wilson(0.4, 1), abs=1e-12)


def test_a_share_is_between_wilson_of_its_prompts_and_of_its_rows():
    for seed in range(50):
        keys = [k % 7 for k in range(40)]
        values = [float((k * seed + k % 7 * seed // 3) % 5 > 1) for k in range(40)]
        rate = share(clustered(keys, values))
        few, many = wilson(rate.value * 40**2 / 230, 40**2 / 230), wilson(rate.value * 40, 40)  # 5 x 6^2 + 2 x 5^2
        assert few[0] - 1e-12 <= rate.low <= many[0] + 1e-12
        assert many[1] - 1e-12 <= rate.high <= few[1] + 1e-12


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
    average = mean(clustered("aab", [1.0, 3.0, 8.0]))
    assert (average.mean, average.se) == pytest.approx((4.0, (64**0.5) / 3))
    assert math.isnan(mean(clustered("aa", [1.0, 3.0])).se)


def test_the_expansion_of_students_quantile_meets_scipys():
    from scipy.special import stdtrit

    from afzal.stats.intervals import t95

    assert [t95(df) for df in (1000, 1234.5, 1e5, 1e9)] == pytest.approx(
        [float(stdtrit(df, 0.975)) for df in (1000, 1234.5, 1e5, 1e9)], abs=1e-13
    )


def test_a_share_by_hand():
    """Eight prompts of four rows, of which 4, 4, 4, 4, 4, 4, 1, 3 are right: 7/8 of 32. Prompts are off by six times
    .5, -2.5 and -.5, so 1.5 + 6.25 + .25 = 8 squared, and 6/16 + 39.0625 + 1/16 = 39.5 to the fourth: 3 x 64 / 39.5 are
    4.86 degrees of freedom. Around P, with d = 7/8 - P, prompts have 8 + 8 x 16 d^2 and a row 7/64 + d^2."""
    right = (4, 4, 4, 4, 4, 4, 1, 3)
    rate = share(clustered([k // 4 for k in range(32)], [float(k % 4 < right[k // 4]) for k in range(32)]))
    t2 = stats.t.ppf(0.975, 3 * 64 / 39.5) ** 2
    for p in (rate.low, rate.high):
        d = 7 / 8 - p
        effect = (8 + 128 * d * d) / (32 * (7 / 64 + d * d))
        assert 1 < effect < 4
        assert 32 * d * d == pytest.approx(p * (1 - p) * effect * 8 * t2 / (7 + t2), rel=1e-9)


def test_ends_of_a_share_of_unequal_prompts_are_where_its_definition_says():
    """At either end, the squared distance is what the variance over prompts around that end allows, summed here as it
    is defined: over (total - P weight) / weight of all."""
    drawn = np.random.default_rng(5)
    weights = drawn.integers(1, 30, 40).astype(float)
    totals = drawn.binomial(weights.astype(int), np.where(weights > 12, 0.75, 0.35)).astype(float)
    rate = share([Cluster(t, w, w) for t, w in zip(totals, weights, strict=True)])
    whole, rows = weights.sum(), weights.sum()
    prompts, rest = whole**2 / (weights**2).sum(), (totals - weights * rate.value) / whole
    t = stats.t.ppf(0.975, min(len(rest) - 1, 3 * (rest**2).sum() ** 2 / (rest**4).sum()))
    quantile = prompts * t**2 / (prompts - 1 + t**2)
    for p in rate.ends:
        spread, off = (((totals - p * weights) / whole) ** 2).sum(), rate.value - p
        free = rate.value * (1 - rate.value) + off**2
        squared = quantile + max(0.0, Z95**2 - quantile) * min(1.0, prompts * spread / free) ** 2
        seen = min(Z95**2 / prompts * free, max(Z95**2 / rows * free, squared * spread))
        assert seen == squared * spread, "neither of the bounds decides"
        assert off**2 * free == pytest.approx(p * (1 - p) * seen, rel=1e-6)
