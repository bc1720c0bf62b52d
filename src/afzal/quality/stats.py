"""Small closed-form statistics."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

Z95 = 1.959963984540054


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: (low, high), 95 % by default; (0, 1) when nothing was observed.

    Wilson 1927; unlike p ± z·se it stays within [0, 1] and keeps its coverage for small n and extreme p.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = hits / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def quantile(ordered: Sequence[int], q: float) -> int:
    """The smallest of the sorted values that at least a share ``q`` does not exceed; 0 when there are none."""
    if not ordered:
        return 0
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]
