"""The correlation of two paired differences: closed forms, what it does not depend on, and what its interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from afzal.stats.correlation import paired_correlation


def correlation(x, y, keys=None, weights=None):
    result = paired_correlation(keys or list(range(len(x))), x, y, weights or [1.0] * len(x))
    assert result is not None
    return result


def test_closed_form():
    """(1·2 + 2·1 - 3·1) / sqrt(14 · 6) = 1 / sqrt 84, with the interval worked out by hand from the three prompts."""
    result = correlation([1.0, 2.0, -3.0], [2.0, 1.0, 1.0])
    r, scale = 1 / math.sqrt(84), math.sqrt(84)
    pulls = [p / scale - r / 2 * (q / 14 + s / 6) for p, q, s in ((2, 1, 4), (2, 4, 1), (-3, 9, 1))]
    half = 4.302653 * math.sqrt(1.5 * sum(u * u for u in pulls)) / (1 - r * r)
    assert result.value == pytest.approx(r)
    assert result.n == 3
    assert result.ends == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))


def test_the_sign_is_that_of_the_slope():
    x = [1.0, -2.0, 3.0, -4.0]
    assert correlation(x, [2 * v for v in x]).value == pytest.approx(1.0)
    assert correlation(x, [-3 * v for v in x]).value == pytest.approx(-1.0)


def test_which_answer_is_listed_first_does_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 1.0, size=40), rng.normal(0.5, 1.0, size=40)
    turned = rng.choice([-1.0, 1.0], size=40)
    assert correlation((x * turned).tolist(), (y * turned).tolist()) == correlation(x.tolist(), y.tolist())


def test_a_weight_of_two_is_the_pair_twice_and_of_0_no_pair():
    x, y, keys = [1.0, 2.0, -3.0, 9.0], [2.0, 1.0, 1.0, -9.0], ["a", "b", "c", "d"]
    twice = correlation([*x[:3], 1.0], [*y[:3], 2.0], ["a", "b", "c", "a"])
    assert correlation(x, y, keys, [2.0, 1.0, 1.0, 0.0]) == twice


def test_nothing_is_said_where_nothing_varies_or_prompts_are_too_few():
    assert paired_correlation("abc", [0.0] * 3, [1.0, 2.0, 3.0], [1.0] * 3) is None
    assert paired_correlation("abc", [1.0, 2.0, 3.0], [0.0] * 3, [1.0] * 3) is None
    assert paired_correlation("aab", [1.0, 2.0, 3.0], [1.0, 5.0, 3.0], [1.0] * 3) is None


@pytest.mark.parametrize(("rho", "per_prompt"), [(0.0, 1), (0.5, 4), (0.7, 1)])
def test_the_interval_covers_with_clustered_prompts(rho, per_prompt):
    """60 prompts with one or four pairs that lean the same way: 93 to 97% of 2,000 intervals hold the true value."""
    rng = np.random.default_rng(1)
    keys = np.repeat(np.arange(60), per_prompt).tolist()
    hits = 0
    for _ in range(2000):
        shared, own = rng.normal(size=(2, 2, 60, per_prompt))
        shared[:] = shared[:, :, :1]
        a, b = shared + own if per_prompt > 1 else shared
        x, y = a.ravel(), (rho * a + math.sqrt(1 - rho * rho) * b).ravel()
        low, high = correlation(x.tolist(), y.tolist(), keys).ends
        hits += low <= rho <= high
    assert 0.93 <= hits / 2000 <= 0.97
