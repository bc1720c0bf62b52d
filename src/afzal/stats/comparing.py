"""Comparing policies by rewards of their answers: intervals, win rates, reward at matched KL, best-of-n.

Pure functions of arrays. Shapes: X prompts, n answers per prompt, S seeds, C points along a training, R resamples.
Larger rewards are better; KLs are nats per answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from afzal.stats.intervals import LEVEL, Interval


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over ``count`` things; the mean is taken once, at the end."""

    sum: float
    count: int

    @property
    def mean(self) -> float:
        """Sum over count; NaN where nothing was counted."""
        return self.sum / self.count if self.count else math.nan


def total(values: np.ndarray) -> Total:
    """The sum and the count of an array of any shape."""
    values = np.asarray(values, np.float64)
    return Total(float(values.sum()), int(values.size))


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of ``[X, n]``: prompts are independent, answers to one prompt are not.

    None with a single prompt.
    """
    means = np.asarray(values, np.float64).mean(1)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def bootstrap(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Mean of ``[X]`` with the percentile interval of R resamples of the prompts (Efron 1979).

    For a paired comparison the values are differences on the same prompts. A single prompt has no interval.

    Raises:
        ValueError: there is no prompt.
    """
    found = np.asarray(values, np.float64)
    if not len(found):
        raise ValueError("a bootstrap needs at least one prompt")
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, None, None, 1)
    drawn = np.random.default_rng(seed).integers(len(found), size=(resamples, len(found)))
    low, high = np.quantile(found[drawn].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(found))


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """``[X]``: mean reward of ``[X, n]`` less that of ``[X, m]``, prompt by prompt."""
    _same_prompts(ours, theirs)
    return np.asarray(ours, np.float64).mean(1) - np.asarray(theirs, np.float64).mean(1)


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """``[X]``: on each prompt, the share of all n m pairs of answers in which ours has the higher reward; ties half.

    So wins(a, b) + wins(b, a) = 1, and 0.5 says that neither is better.
    """
    _same_prompts(ours, theirs)
    a, b = np.asarray(ours, np.float64)[:, :, None], np.asarray(theirs, np.float64)[:, None, :]
    return ((a > b) + 0.5 * (a == b)).mean((1, 2))


def at_kl(kl: Sequence[float], reward: Sequence[float], at: float) -> float | None:
    """The best reward where the way through (kl, reward) ``[C]`` crosses a KL, linear between its points.

    A training may come by a KL several times. None where it never does: nothing is extrapolated.
    """
    best = max((r for k, r in zip(kl, reward, strict=True) if k == at), default=None)
    for (k0, r0), (k1, r1) in pairwise(zip(kl, reward, strict=True)):
        if min(k0, k1) < at < max(k0, k1):
            here = r0 + (r1 - r0) * (at - k0) / (k1 - k0)
            best = here if best is None else max(best, here)
    return best


def matched_levels(reached: Sequence[float]) -> list[float]:
    """KLs to compare at: a quarter, a half and all of what half of the methods reach, to two digits, rounded down.

    Args:
        reached: the largest KL of each method; those that never leave the start are left out.
    """
    found = sorted(k for k in reached if k > 0)
    if not found:
        return []
    most = found[(len(found) - 1) // 2]
    return sorted({_down(most * share) for share in (0.25, 0.5, 1.0)})


def _down(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / step + 1e-9) * step:.6g}")


def best_of(scores: np.ndarray, n: int, answers: int) -> np.ndarray:
    """``[X, answers]`` int: of ``answers`` groups of ``n`` candidates each, the place of the one that scores highest.

    Args:
        scores: ``[X, N]`` of the candidates, N >= n answers; group g is candidates g n to g n + n - 1. Of equals the
            first is taken, which is a fair draw, since candidates are exchangeable.
    """
    if scores.shape[1] < n * answers:
        raise ValueError(
            f"{answers} answers, each the best of {n}, need {n * answers} candidates, not {scores.shape[1]}"
        )
    groups = scores[:, : n * answers].reshape(len(scores), answers, n)
    return groups.argmax(2) + n * np.arange(answers)


def best_of_kl(n: int) -> float:
    """log n - (n - 1) / n nats: the KL of best-of-n to its start is at most this (Beirami et al. 2024, 2401.01879).

    It is the KL itself where no two answers are equally good and no answer comes twice.
    """
    return math.log(n) - (n - 1) / n


def _same_prompts(ours: np.ndarray, theirs: np.ndarray) -> None:
    if len(ours) != len(theirs):
        raise ValueError(f"answers to {len(ours)} and to {len(theirs)} prompts cannot be compared")
