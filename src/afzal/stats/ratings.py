"""Agreement of annotators who give scores with meaningful distances.

Shapes: N units (answers), R annotators. Values are ``[N, R]`` float, NaN without a score. Every figure is a function of
sums over units, so that whole prompts are resampled by one product per resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["two values", "whole numbers", "numbers"]
MOST_CLASSES = 21  # whole numbers; with more of them single values are not counted


def scale_of(values: np.ndarray) -> Scale:
    """The scale of the scores: two values are classes, a few whole numbers have an order and distances."""
    used = np.unique(values[np.isfinite(values)])
    if len(used) <= 2:
        return "two values"
    return "whole numbers" if len(used) <= MOST_CLASSES and (used == used.round()).all() else "numbers"


def class_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[N, K]`` counts of annotators per value, and the ``[K]`` values in ascending order."""
    used = np.unique(values[np.isfinite(values)])
    return np.stack([(values == v).sum(1) for v in used], 1).astype(np.float64), used


def alpha_sums(values: np.ndarray) -> np.ndarray:
    """``[N, 4]`` for units with two scores or more: number of scores, sum, sum of squares, and squared differences."""
    scored = np.isfinite(values)
    n = scored.sum(1).astype(np.float64)
    first = np.where(scored, values, 0.0).sum(1)
    second = np.where(scored, values**2, 0.0).sum(1)
    differences = 2 * (n * second - first**2) / np.maximum(n - 1, 1)
    return np.stack([n, first, second, differences], 1) * (n >= 2)[:, None]


def alpha_of(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha on an interval scale, by squared differences, from ``[..., 4]`` sums.

    Equal to :func:`afzal.stats.agreement.krippendorff` on the counts of each value, without computing the counts.
    """
    n, first, second, differences = np.moveaxis(sums, -1, 0)
    return 1 - (n - 1) * differences / (2 * (n * second - first**2))


def rest_sums(values: np.ndarray) -> np.ndarray:
    """``[N, R, 7]`` summands from every score and the mean of the others on its unit; 0 if nobody else rated it.

    They are: 1, own, theirs, own squared, theirs squared, own times theirs, and whether both have the same sign.
    """
    scored = np.isfinite(values)
    total, n = np.where(scored, values, 0.0).sum(1, keepdims=True), scored.sum(1, keepdims=True)
    shared = scored & (n > 1)
    x = np.where(shared, values, 0.0)
    y = np.where(shared, (total - x) / np.maximum(n - 1, 1), 0.0)
    same_sign = shared & (np.sign(x) == np.sign(y))
    return np.stack([shared, x, y, x * x, y * y, x * y, same_sign], -1).astype(np.float64)


def correlation_of(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation with the mean of the others, the ceiling of people on a scale, from ``[..., 7]`` sums."""
    n, x, y, xx, yy, xy, _ = np.moveaxis(sums, -1, 0)
    return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))


def same_sign_of(sums: np.ndarray) -> np.ndarray:
    """The share of scores with the same sign as the mean of the others."""
    return sums[..., 6] / sums[..., 0]


def above_of(sums: np.ndarray) -> np.ndarray:
    """The mean of own minus theirs."""
    return (sums[..., 1] - sums[..., 2]) / sums[..., 0]


def reliability(single: float, raters: float) -> float:
    """Reliability of the mean of ``raters`` raters with reliability ``single`` each (Spearman 1910, Brown 1910)."""
    return raters * single / (1 + (raters - 1) * single)


def spread(values: np.ndarray) -> float:
    """Mean over units of their scores' standard deviation (N - 1), in the unit of the scores.

    Raises:
        ValueError: no unit has two scores.
    """
    several = values[np.isfinite(values).sum(1) >= 2]
    if not len(several):
        raise ValueError("a spread needs a unit with two scores")
    return float(np.nanstd(several, axis=1, ddof=1).mean())


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Shares of score pairs of one unit that are equal, and that are within 1 of each other."""

    equal: float
    within_one: float


def pairwise(values: np.ndarray) -> Pairwise:
    """Over all pairs of annotators of a unit, pooled over units.

    Raises:
        ValueError: no unit has two scores.
    """
    counts, used = class_counts(values)
    n = counts.sum(1)
    pairs = (n * (n - 1)).sum()
    if pairs == 0:
        raise ValueError("agreement needs a unit with two scores")
    close = np.abs(used[:, None] - used[None]) <= 1
    close_pairs = np.einsum("nk,nl,kl->", counts, counts, close) - counts.sum()
    return Pairwise(float((counts * (counts - 1)).sum() / pairs), float(close_pairs / pairs))
