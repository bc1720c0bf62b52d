"""Calibration of stated preferences, and linear trends. Pure functions of arrays; T pairs, N points."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from afzal.stats.intervals import LEVEL, Interval, clustered, half_width, mean, share, t95

_DRAWS = 1000
_RESAMPLES = 200  # of the prompts, for a standard deviation
_SEED = 0
_MANY = 500  # pairs in a bin


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs with confidence in [``low``, ``high``): their number, mean confidence, and accuracy with its 95% interval
    over prompts."""

    low: float
    high: float
    n: int
    confidence: float
    right: float
    right_low: float
    right_high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well ``n`` pairs of ``prompts`` prompts are predicted.

    ``ece`` in [0, 0.5]: weighted mean distance between confidence and accuracy over bins; 0 is best. Chance alone makes
    it positive: a perfectly calibrated model has ``null`` on average, and exceeds ``null_high`` once in 40 times.
    ``ece_low`` and ``ece_high`` are its 95% interval, None for a single prompt.
    ``brier`` in [0, 1]: mean squared distance of the stated probability from the label; 0.25 is a coin. ``brier_low``
    and ``brier_high`` are its interval, see :func:`brier_score`.
    ``log_loss`` in nats; ln 2 is a coin.
    """

    ece: float
    ece_low: float | None
    ece_high: float | None
    null: float
    null_high: float
    brier: float
    brier_low: float | None
    brier_high: float | None
    log_loss: float
    n: int
    prompts: int
    bins: tuple[Bin, ...]


def calibration(
    gaps: np.ndarray,
    p: np.ndarray,
    prompts: Sequence[Hashable] | None = None,
    weights: np.ndarray | None = None,
    *,
    n_bins: int = 10,
) -> Calibration:
    """How well sigma(gap) predicts that the first response is better.

    A prediction's confidence is max(sigma, 1 - sigma) in [0.5, 1]. It is right with the label's probability for the
    favoured response, so the order within a pair has no effect (Guo et al. 2017, arXiv 1706.04599). Draws use a fixed
    seed, so that equal input gives equal figures.

    Args:
        gaps: ``[T]`` score of the first response less score of the second.
        p: ``[T]`` label: probability that the first is better; 0.5 is a tie.
        prompts: ``[T]``, the prompt of each pair; pairs of one prompt are not independent. Default: all different.
        weights: ``[T]`` of each pair; default 1.

    Raises:
        ValueError: no pair has a positive weight.
    """
    pairs = _pairs(gaps, p, prompts, weights, n_bins)
    edges = np.linspace(0.5, 1.0, n_bins + 1)
    bins = []
    for k in np.unique(pairs.bin).tolist():
        inside = pairs.bin == k
        w = pairs.weight[inside]
        accuracy = share(clustered(pairs.prompt[inside].tolist(), pairs.right[inside].tolist(), w.tolist()))
        confidence = float(w @ pairs.confidence[inside] / w.sum())
        bins.append(
            Bin(float(edges[k]), float(edges[k + 1]), int(inside.sum()), confidence, accuracy.value, *accuracy.ends)
        )
    rng = np.random.default_rng(_SEED)
    ece, chance = _ece(pairs, n_bins), _chance(pairs, n_bins, rng)
    null, null_high = float(chance.mean()), float(np.quantile(chance, (1 + LEVEL) / 2))
    low, high = _interval(pairs, ece, null_high, n_bins, rng)
    counts = len(pairs.bin), int(pairs.prompt.max()) + 1
    score = brier_score(pairs.squared, pairs.prompt.tolist(), pairs.weight)
    brier = score.value, score.low, score.high
    return Calibration(ece, low, high, null, null_high, *brier, pairs.log_loss, *counts, tuple(bins))


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """``[T]`` each: bin of the confidence, confidence, probability of being right, squared distance of the stated
    probability from the label, number of the prompt, weight."""

    bin: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    squared: np.ndarray
    prompt: np.ndarray
    weight: np.ndarray
    log_loss: float


def _pairs(
    gaps: np.ndarray,
    p: np.ndarray,
    prompts: Sequence[Hashable] | None,
    weights: np.ndarray | None,
    n_bins: int,
) -> _Pairs:
    gaps, p = np.asarray(gaps, np.float64), np.asarray(p, np.float64)
    weight = np.ones(len(gaps)) if weights is None else np.asarray(weights, np.float64)
    prompts = range(len(gaps)) if prompts is None else prompts
    if not len(gaps) or not weight.sum() > 0:
        raise ValueError("calibration needs at least one pair")
    weighted = weight > 0
    numbers: dict[Hashable, int] = {}
    prompt = np.array([numbers.setdefault(x, len(numbers)) for x, ok in zip(prompts, weighted, strict=True) if ok])
    gaps, p, weight = gaps[weighted], p[weighted], weight[weighted]
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    right = np.where(gaps > 0, p, np.where(gaps < 0, 1 - p, 0.5))
    # not from confidence and right: a pair predicted as even is half right, but 1/2 away from its label
    squared = (np.where(gaps > 0, confidence, 1 - confidence) - p) ** 2
    losses = np.logaddexp(0, -gaps) * p + np.logaddexp(0, gaps) * (1 - p)
    edges = np.linspace(0.5, 1.0, n_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, n_bins - 1)
    return _Pairs(place, confidence, right, squared, prompt, weight, float(weight @ losses / weight.sum()))


def brier_score(losses: np.ndarray, prompts: Sequence[Hashable], weights: np.ndarray | None = None) -> Interval:
    """The mean of squared distances ``[T]`` of probabilities from labels, with its interval over prompts.

    The interval is Student's, clipped to [0, 1]. It is that of a share, which is wide enough for any losses, if all
    predictions are certain, so that the score is a share of errors (a tie counts a quarter), or if all losses are
    equal, so that their spread is uninformative. A single prompt has no interval.

    Args:
        prompts: ``[T]``, the prompt of each; those of one prompt are not independent.
        weights: ``[T]``; default 1.
    """
    clusters = clustered(prompts, losses.tolist(), () if weights is None else weights.tolist())
    estimate, n = mean(clusters), len(set(prompts))
    if n < 2:
        return Interval(estimate.mean, None, None, n)
    if np.isin(np.round(losses, 9), (0.0, 0.25, 1.0)).all() or np.ptp(losses) < 1e-9:
        return share(clusters)
    low, high = estimate.ends
    return Interval(estimate.mean, max(0.0, low), min(1.0, high), n)


def _ece(pairs: _Pairs, n_bins: int) -> float:
    off = np.bincount(pairs.bin, pairs.weight * (pairs.confidence - pairs.right), n_bins)
    return float(np.abs(off).sum() / pairs.weight.sum())


def _chance(pairs: _Pairs, n_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Expected calibration errors ``[_DRAWS]`` of these predictions if they were perfectly calibrated.

    They are drawn with independent, certain labels. If prompts repeat or labels are soft, they are scaled by the
    observed variance over prompts.
    """
    errors = np.zeros((_DRAWS, n_bins))
    for k in np.unique(pairs.bin).tolist():
        inside = pairs.bin == k
        w, c = pairs.weight[inside], pairs.confidence[inside]
        if len(c) > _MANY:  # the normal distribution is close enough and cheap to draw
            errors[:, k] = math.sqrt(w * w @ (c * (1 - c))) * rng.normal(size=_DRAWS)
        else:
            errors[:, k] = (c - (rng.random((_DRAWS, len(c))) < c)) @ w
    return math.sqrt(_effect(pairs, n_bins)) * np.abs(errors).sum(1) / pairs.weight.sum()


def _effect(pairs: _Pairs, n_bins: int) -> float:
    """The design effect: variance over prompts of the bins' errors, relative to that of independent, certain labels."""
    certain = np.isin(pairs.right, (0.0, 1.0)).all()
    if certain and len(np.unique(pairs.prompt)) == len(pairs.prompt):
        return 1.0
    observed = independent = 0.0
    for k in range(n_bins):
        inside = pairs.bin == k
        _, prompt = np.unique(pairs.prompt[inside], return_inverse=True)
        n = int(prompt.max(initial=-1)) + 1
        if n < 2:
            continue
        w, c = pairs.weight[inside], pairs.confidence[inside]
        off = w * (c - pairs.right[inside])
        by_prompt = np.bincount(prompt, off) - off.sum() / w.sum() * np.bincount(prompt, w)
        observed += float(by_prompt @ by_prompt) * n / (n - 1)
        independent += float((w * w) @ (c * (1 - c)))
    return observed / independent if observed and independent else 1.0


def _interval(
    pairs: _Pairs, ece: float, null_high: float, n_bins: int, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    """95% interval of the calibration error in the limit of many pairs; None for a single prompt.

    Chance makes the observed error exceed the true one, by at most the error of perfect calibration. Subtracting that
    gives the lower end, which is 0 unless the model is clearly miscalibrated. The upper end is 1.96 standard deviations
    of resampled prompts above the observed error. Coverage is at least nominal (``benchmarks/coverage.py``).
    """
    n = int(pairs.prompt.max()) + 1
    if n < 2:
        return None, None
    errors = pairs.weight * (pairs.confidence - pairs.right)
    columns = [np.where(pairs.bin == k, errors, 0.0) for k in range(n_bins)]
    off = np.stack([np.bincount(pairs.prompt, column, n) for column in [*columns, pairs.weight]], 1)
    resampled = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ off for _ in range(_RESAMPLES)])
    eces = np.abs(resampled[:, :n_bins]).sum(1) / resampled[:, n_bins]
    return max(0.0, ece - null_high), min(1.0, ece + half_width(float(eces.std())))


@dataclass(frozen=True, slots=True)
class Trend:
    """Least-squares line of y on x: ``slope`` in units of y per unit of x with its standard error and 95% interval,
    Pearson's r, and the number of points."""

    slope: float
    slope_se: float
    low: float
    high: float
    correlation: float
    n: int


def trend(x: np.ndarray, y: np.ndarray, prompts: Sequence[Hashable] | None = None) -> Trend | None:
    """The linear trend of y ``[N]`` on x ``[N]``; None for fewer than 3 points or prompts, or without variation.

    Args:
        prompts: ``[N]``, the prompt of each point; the standard error is then over prompts, by the jackknife (Tukey
            1958; CR3 of MacKinnon, Nielsen and Webb 2023). Default: points are independent with equal variance.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    if prompts is None:
        residual = dy - slope * dx
        df, error = len(x) - 2, math.sqrt(float(residual @ residual) / (len(x) - 2) / float(dx @ dx))
    else:
        jackknife = _slopes_without(dx, dy, prompts)
        if jackknife is None:
            return None
        df = len(jackknife) - 1
        error = math.sqrt(df / len(jackknife) * float(((jackknife - slope) ** 2).sum()))
    margin, correlation = t95(df) * error, float(dx @ dy / math.sqrt((dx @ dx) * (dy @ dy)))
    return Trend(slope, error, slope - margin, slope + margin, correlation, len(x))


def _slopes_without(x: np.ndarray, y: np.ndarray, prompts: Sequence[Hashable]) -> np.ndarray | None:
    """Slopes with each prompt left out in turn; None for fewer than 3 prompts, or if x no longer varies."""
    numbers: dict[Hashable, int] = {}
    place = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    if len(numbers) < 3:
        return None
    sums = [np.bincount(place, values) for values in (np.ones(len(x)), x, y, x * x, x * y)]
    n, sx, sy, sxx, sxy = (part.sum() - part for part in sums)
    spread = sxx - sx * sx / n
    if (spread <= 1e-12 * sxx.max()).any():
        return None
    return (sxy - sx * sy / n) / spread
