"""Agreement of annotators who give scores, where the distance between two scores means something.

Shapes: N units (answers), R annotators. Values are ``[N, R]`` float, NaN where an annotator said nothing. Every figure
is a function of sums over units, so that whole prompts are resampled by one product per resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["two values", "whole numbers", "numbers"]
MOST_CLASSES = 21  # whole numbers: more of them are a scale whose single values nobody counts


def scale_of(values: np.ndarray) -> Scale:
    """Which scale the scores are on: two values are classes, a few whole numbers have an order and distances."""
    used = np.unique(values[np.isfinite(values)])
    if len(used) <= 2:
        return "two values"
    return "whole numbers" if len(used) <= MOST_CLASSES and (used == used.round()).all() else "numbers"


def class_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[N, K]`` how many annotators gave each value, and the ``[K]`` values in ascending order."""
    used = np.unique(values[np.isfinite(values)])
    return np.stack([(values == v).sum(1) for v in used], 1).astype(np.float64), used


def alpha_sums(values: np.ndarray) -> np.ndarray:
    """``[N, 4]`` of units with two scores or more: scores, their sum, their squares, and what they differ by."""
    given = np.isfinite(values)
    n = given.sum(1).astype(np.float64)
    first = np.where(given, values, 0.0).sum(1)
    second = np.where(given, values**2, 0.0).sum(1)
    within = 2 * (n * second - first**2) / np.maximum(n - 1, 1)
    return np.stack([n, first, second, within], 1) * (n >= 2)[:, None]


def alpha_of(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha on an interval scale, by squared differences, of ``[..., 4]`` sums.

    Equal to :func:`afzal.stats.agreement.krippendorff` of the counts of each value, without the counts.
    """
    n, first, second, within = np.moveaxis(sums, -1, 0)
    return 1 - (n - 1) * within / (2 * (n * second - first**2))


def rest_sums(values: np.ndarray) -> np.ndarray:
    """``[N, R, 7]`` of every score and the mean of the other annotators on its unit; 0 where nobody else rated it.

    They are: 1, own, theirs, own squared, theirs squared, own times theirs, and whether both have the same sign.
    """
    given = np.isfinite(values)
    total, n = np.where(given, values, 0.0).sum(1, keepdims=True), given.sum(1, keepdims=True)
    both = given & (n > 1)
    x = np.where(both, values, 0.0)
    y = np.where(both, (total - x) / np.maximum(n - 1, 1), 0.0)
    same = both & (np.sign(x) == np.sign(y))
    return np.stack([both, x, y, x * x, y * y, x * y, same], -1).astype(np.float64)


def correlation_of(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation with the mean of the others, the ceiling of people on a scale, of ``[..., 7]`` sums."""
    n, x, y, xx, yy, xy, _ = np.moveaxis(sums, -1, 0)
    return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))


def same_sign_of(sums: np.ndarray) -> np.ndarray:
    """The share of scores with the sign of the mean of the others."""
    return sums[..., 6] / sums[..., 0]


def above_of(sums: np.ndarray) -> np.ndarray:
    """The mean of own minus theirs."""
    return (sums[..., 1] - sums[..., 2]) / sums[..., 0]


def reliability(one: float, raters: float) -> float:
    """Reliability of a mean of so many raters, of whom one has this reliability (Spearman 1910, Brown 1910)."""
    return raters * one / (1 + (raters - 1) * one)


def spread(values: np.ndarray) -> float:
    """Mean over units of the standard deviation of their scores (N - 1), in the unit of the scores.

    Raises:
        ValueError: no unit has two scores.
    """
    several = values[np.isfinite(values).sum(1) >= 2]
    if not len(several):
        raise ValueError("a spread needs a unit with two scores")
    return float(np.nanstd(several, axis=1, ddof=1).mean())


@dataclass(frozen=True, slots=True)
class Pairwise:
    """What pairs of scores of one unit say: the share that are equal, and the share within 1 of each other."""

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
    near = np.abs(used[:, None] - used[None]) <= 1
    both = np.einsum("nk,nl,kl->", counts, counts, near) - counts.sum()
    return Pairwise(float((counts * (counts - 1)).sum() / pairs), float(both / pairs))
