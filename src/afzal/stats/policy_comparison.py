"""Comparison of policies by their answers' rewards: intervals, win rates, reward at matched KL, best-of-n.

Pure functions of arrays. Shapes: X prompts, n answers per prompt, S seeds, C points along a training, R resamples.
Larger rewards are better; KLs are nats per answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from afzal.stats.intervals import Cluster, Interval, clustered, mean, share, t95


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over ``count`` values; the mean is taken once, at the end."""

    sum: float
    count: int

    @property
    def mean(self) -> float:
        """Sum over count; NaN for an empty sum."""
        return self.sum / self.count if self.count else math.nan


def total(values: np.ndarray) -> Total:
    """The sum and the count of an array of any shape."""
    values = np.asarray(values, np.float64)
    return Total(float(values.sum()), int(values.size))


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of ``[X, n]``: prompts are independent, answers to one prompt are not.

    None for a single prompt.
    """
    by_prompt = np.asarray(values, np.float64).sum(1)
    n = np.shape(values)[1]
    estimate = mean([Cluster(total, float(n), float(n)) for total in by_prompt.tolist()])
    return None if math.isnan(estimate.se) else estimate.se


def bootstrap(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Mean of ``[X]`` with the expanded percentile interval of R resamples of the prompts.

    Plain percentiles (Efron 1979) are too narrow, by the n - 1 of the standard deviation and by Student's t; a wider
    tail compensates for both (Hesterberg 2015, The American Statistician 69). For a paired comparison the values are
    differences on the same prompts. A single prompt has no interval.

    Raises:
        ValueError: there is no prompt.
    """
    from scipy.special import ndtr

    means = np.asarray(values, np.float64)
    if not len(means):
        raise ValueError("a bootstrap needs at least one prompt")
    n, centre = len(means), float(means.mean())
    if n < 2:
        return Interval(centre, None, None, 1)
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * t95(n - 1)))
    index = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.quantile(means[index].mean(1), [tail, 1 - tail])
    return Interval(centre, float(low), float(high), n)


def over_seeds_and_prompts(values: np.ndarray) -> Interval:
    """Mean of ``[S, X]`` over seeds and prompts; every seed has the same prompts.

    The variance is that over prompts plus that over seeds beyond the prompts' noise (two-way clusters, Cameron, Gelbach
    and Miller 2011), each with Student's quantile for its own degrees of freedom: two or three seeds say little about
    how much seeds vary. With a single seed the interval is over prompts only; with one of each there is none. For a
    paired comparison the values are differences of the same seed on the same prompt. ``n`` is S, or X for a single
    seed.
    """
    gains = np.asarray(values, np.float64)
    centre, (seeds, prompts) = float(gains.mean()), gains.shape
    if gains.size < 2:
        return Interval(centre, None, None, 1)
    square = 0.0
    if prompts > 1:
        square += t95(prompts - 1) ** 2 * float(gains.mean(0).var(ddof=1)) / prompts
    if seeds > 1:
        interaction = gains - gains.mean(1, keepdims=True) - gains.mean(0, keepdims=True) + centre
        noise = float((interaction**2).sum()) / ((seeds - 1) * max(1, prompts - 1)) / gains.size
        between_seeds = float(gains.mean(1).var(ddof=1)) / seeds
        square += t95(seeds - 1) ** 2 * max(0.0, between_seeds - noise)
    margin = math.sqrt(square)
    return Interval(centre, centre - margin, centre + margin, seeds if seeds > 1 else prompts)


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """``[X]``: mean reward of ``[X, n]`` less that of ``[X, m]``, by prompt."""
    _same_prompts(ours, theirs)
    return np.asarray(ours, np.float64).mean(1) - np.asarray(theirs, np.float64).mean(1)


def same_draws(n: int, m: int, ours_each: int = 1, theirs_each: int = 1) -> np.ndarray:
    """``[n, m]`` bool: which pairs of answers share random numbers.

    Answer i of n comes from draws i c to i c + c - 1: the draw itself for c = 1, the best of them for best-of-c.

    Args:
        ours_each, theirs_each: c of each side.
    """
    ours, theirs = np.arange(n)[:, None] * ours_each, np.arange(m)[None, :] * theirs_each
    return (ours < theirs + theirs_each) & (theirs < ours + ours_each)


def wins(ours: np.ndarray, theirs: np.ndarray, coupled: np.ndarray | None = None) -> np.ndarray:
    """``[X]``: on each prompt, the share of answer pairs in which ours has the higher reward; ties count half.

    So wins(a, b) + wins(b, a) = 1, and 0.5 means that neither is better. Answers that share random numbers resemble
    each other, the more so the closer the policies are, and bias the share compared with independent answers: of two
    policies that differ only in one rare answer, the better would win every pair that is not a tie.

    Args:
        coupled: ``[n, m]`` bool, pairs to leave out, from :func:`same_draws`; default none.

    Raises:
        ValueError: no pair is left.
    """
    _same_prompts(ours, theirs)
    a, b = np.asarray(ours, np.float64)[:, :, None], np.asarray(theirs, np.float64)[:, None, :]
    won = (a > b) + 0.5 * (a == b)
    used = np.ones(won.shape[1:], bool) if coupled is None else ~coupled
    if not used.any():
        raise ValueError("a win rate needs answers that were drawn independently of each other")
    return won[:, used].mean(1)


def share_of_wins(by_prompt: np.ndarray, pairs: int) -> Interval:
    """Mean of ``[X]`` win rates, each over ``pairs`` answer pairs, with an interval over prompts that keeps its
    coverage even if all or none are won."""
    return share([Cluster(value * pairs, float(pairs), float(pairs)) for value in np.asarray(by_prompt).tolist()])


def share_of_verdicts(points: np.ndarray) -> Interval | None:
    """Mean of ``[S, X]`` points of S seeds on X prompts over the given verdicts; NaN is no verdict.

    The interval is that of a share over prompts. With several seeds it is widened to contain the interval over seeds
    and prompts, from the prompts with verdicts for every seed. If all or none are won only the first is useful, and
    only the second accounts for other trainings winning on other prompts. None without any verdict.
    """
    table = np.asarray(points, np.float64)
    has_verdict = np.isfinite(table)
    if not has_verdict.any():
        return None
    over_prompts = share(clustered(np.nonzero(has_verdict)[1].tolist(), table[has_verdict].tolist()))
    complete = table[:, has_verdict.all(0)]
    if len(table) < 2 or not complete.size:
        return over_prompts
    low, high = over_seeds_and_prompts(complete).ends
    margin, value = (high - low) / 2, over_prompts.value
    low, high = over_prompts.ends
    return Interval(value, max(0.0, min(low, value - margin)), min(1.0, max(high, value + margin)), over_prompts.n)


def at_kl(kl: Sequence[float], level: float) -> np.ndarray | None:
    """``[C]`` weights of a training's points whose weighted mean represents the policy at a KL; None if that KL is not
    reached (nothing is extrapolated).

    Measured KLs fluctuate, so a training seems to cross a level several times, and taking the best crossing would take
    the luckiest reward. So the KLs are first fitted by the nearest non-decreasing sequence (isotonic regression by
    pooling adjacent violators, Barlow et al. 1972), which crosses every level once. The reward is interpolated linearly
    between the neighbouring pools.

    Args:
        kl: of each point, by step, the start first; rewards have no effect on the weights.
    """
    pools, weights, end = _rising(kl), np.zeros(len(kl)), 0
    for (k0, n0), (k1, n1) in pairwise(pools):
        end += n0
        if k0 <= level <= k1:
            fraction = (level - k0) / (k1 - k0)
            weights[end - n0 : end] = (1 - fraction) / n0
            weights[end : end + n1] = fraction / n1
            return weights
    return None


def reached(kl: Sequence[float]) -> float:
    """The highest KL at which :func:`at_kl` has a result."""
    return _rising(kl)[-1][0] if kl else 0.0


def _rising(kl: Sequence[float]) -> list[tuple[float, int]]:
    """The nearest non-decreasing sequence, as its levels and the number of points on each."""
    pools: list[tuple[float, int]] = []
    for value in kl:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (v1, n1), (v0, n0) = pools.pop(), pools.pop()
            pools.append(((v0 * n0 + v1 * n1) / (n0 + n1), n0 + n1))
    return pools


def matched_levels(reached: Sequence[float]) -> list[float]:
    """KLs to compare at: a quarter, half and all of the KL that half of the methods reach, rounded down to two digits.

    Args:
        reached: the KL that each method reaches with every seed; methods that never leave the start are ignored.
    """
    levels = sorted(k for k in reached if k > 0)
    if not levels:
        return []
    most = levels[(len(levels) - 1) // 2]
    return sorted({_down(most * share) for share in (0.25, 0.5, 1.0)})


def _down(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / step + 1e-9) * step:.6g}")


def best_of(scores: np.ndarray, n: int, answers: int) -> np.ndarray:
    """``[X, answers]`` int: the index of the best candidate in each of ``answers`` groups of ``n`` candidates.

    Args:
        scores: ``[X, N]`` of the candidates, N >= n answers; group g is candidates g n to g n + n - 1. The first of
            equal candidates is taken, which is a fair draw since candidates are exchangeable.
    """
    if scores.shape[1] < n * answers:
        raise ValueError(
            f"{answers} answers, each the best of {n}, need {n * answers} candidates, not {scores.shape[1]}"
        )
    groups = scores[:, : n * answers].reshape(len(scores), answers, n)
    return groups.argmax(2) + n * np.arange(answers)


def best_of_kl(n: int) -> float:
    """log n - (n - 1) / n nats, an upper bound on the KL of best-of-n to its start (Beirami et al. 2024, 2401.01879).

    It is exact if no two answers are equally good and no answer is drawn twice.
    """
    return math.log(n) - (n - 1) / n


def _same_prompts(ours: np.ndarray, theirs: np.ndarray) -> None:
    if len(ours) != len(theirs):
        raise ValueError(f"answers to {len(ours)} and to {len(theirs)} prompts cannot be compared")
