"""Calibration of stated preferences, and the pull of length on scores. Pure functions of arrays; T pairs, N points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence lies in [``low``, ``high``): their number, mean confidence and share that was right."""

    low: float
    high: float
    n: int
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """``ece`` in [0, 0.5]: mean distance of confidence from being right, over bins by size; 0 is best.

    ``brier`` in [0, 1]: mean squared distance of the stated probability from the label; 0.25 is a coin.
    ``log_loss`` in nats; ln 2 is a coin.
    """

    ece: float
    brier: float
    log_loss: float
    bins: tuple[Bin, ...]


def calibration(gaps: np.ndarray, p: np.ndarray, *, n_bins: int = 10) -> Calibration:
    """How well sigma(gap) states the probability that the first response is better.

    A prediction's confidence is max(sigma, 1 - sigma) in [0.5, 1], and it is right by the label's probability for the
    response it favours, so that which of a pair stands first plays no part (Guo et al. 2017, arXiv 1706.04599).

    Args:
        gaps: ``[T]`` score of the first less score of the second response.
        p: ``[T]`` label: probability that the first is better; 0.5 is a tie.

    Raises:
        ValueError: there are no pairs.
    """
    gaps, p = np.asarray(gaps, np.float64), np.asarray(p, np.float64)
    if not len(gaps):
        raise ValueError("calibration needs at least one pair")
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    right = np.where(gaps > 0, p, np.where(gaps < 0, 1 - p, 0.5))
    log_loss = float(np.mean(np.logaddexp(0, -gaps) * p + np.logaddexp(0, gaps) * (1 - p)))
    brier = float(np.mean((confidence - right) ** 2))
    edges = np.linspace(0.5, 1.0, n_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, n_bins - 1)
    bins = []
    for k in np.unique(place).tolist():
        inside = place == k
        means = float(confidence[inside].mean()), float(right[inside].mean())
        bins.append(Bin(float(edges[k]), float(edges[k + 1]), int(inside.sum()), *means))
    ece = sum(b.n * abs(b.confidence - b.right) for b in bins) / len(gaps)
    return Calibration(ece, brier, log_loss, tuple(bins))


@dataclass(frozen=True, slots=True)
class Trend:
    """Least-squares line of y on x: ``slope`` in units of y per unit of x with its standard error, and Pearson's r."""

    slope: float
    slope_se: float
    correlation: float
    n: int


def trend(x: np.ndarray, y: np.ndarray) -> Trend | None:
    """The linear pull of x ``[N]`` on y ``[N]``; None with fewer than 3 points or where x or y never varies."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    residual = float(((dy - slope * dx) ** 2).sum())
    error = math.sqrt(residual / (len(x) - 2) / float(dx @ dx))
    return Trend(slope, error, float(dx @ dy / math.sqrt((dx @ dx) * (dy @ dy))), len(x))
