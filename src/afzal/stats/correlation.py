"""Correlation of two differences between a pair's answers, over pairs that share prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from afzal.stats.intervals import Interval, t95


def paired_correlation(
    keys: Sequence[Hashable], x: Sequence[float], y: Sequence[float], weights: Sequence[float]
) -> Interval | None:
    """Correlation of two differences between a pair's answers, from -1 to 1, with a 95% interval over prompts.

    Each pair counts in both orders, (x, y) and (-x, -y), so that it does not matter which answer is listed first:
    sum w x y / sqrt(sum w x^2 sum w y^2), which is Pearson's over pairs in a random order. The interval is that of a
    function of sums over prompts (delta method) in Fisher's atanh, with Student's t.

    Args:
        keys: the prompt of each pair.
        x, y: differences, first less second answer.
        weights: of each pair.

    Returns:
        None if either difference is always 0, or fewer than three prompts have pairs with a weight. ``n`` counts the
        prompts.
    """
    sums: dict[Hashable, tuple[float, float, float]] = {}
    for key, a, b, w in zip(keys, x, y, weights, strict=True):
        if w:
            p, q, r = sums.get(key, (0.0, 0.0, 0.0))
            sums[key] = (p + w * a * b, q + w * a * a, r + w * b * b)
    product, first, second = (math.fsum(part[k] for part in sums.values()) for k in range(3))
    n, scale = len(sums), math.sqrt(first * second)
    if n < 3 or scale == 0:
        return None
    value = product / scale
    pull = [p / scale - value / 2 * (q / first + r / second) for p, q, r in sums.values()]
    se = math.sqrt(n / (n - 1) * math.fsum(u * u for u in pull))
    unexplained = 1 - value * value
    if unexplained <= 1e-12:
        return Interval(value, value, value, n)
    centre, margin = math.atanh(value), t95(n - 1) * se / unexplained
    return Interval(value, math.tanh(centre - margin), math.tanh(centre + margin), n)
