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

from afzal.stats.intervals import Cluster, Interval, clustered, mean, share, t95


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
    by_prompt = np.asarray(values, np.float64).sum(1)
    n = np.shape(values)[1]
    found = mean([Cluster(total, float(n), float(n)) for total in by_prompt.tolist()])
    return None if math.isnan(found.se) else found.se


def bootstrap(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Mean of ``[X]`` with the expanded percentile interval of R resamples of the prompts.

    Plain percentiles (Efron 1979) are too narrow by the n - 1 of the standard deviation and by Student's t; so those of
    the tail that makes up for both are taken (Hesterberg 2015, The American Statistician 69). For a paired comparison
    the values are differences on the same prompts. A single prompt has no interval.

    Raises:
        ValueError: there is no prompt.
    """
    from scipy.special import ndtr

    found = np.asarray(values, np.float64)
    if not len(found):
        raise ValueError("a bootstrap needs at least one prompt")
    n, centre = len(found), float(found.mean())
    if n < 2:
        return Interval(centre, None, None, 1)
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * t95(n - 1)))
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.quantile(found[drawn].mean(1), [tail, 1 - tail])
    return Interval(centre, float(low), float(high), n)


def over_seeds_and_prompts(values: np.ndarray) -> Interval:
    """Mean of ``[S, X]`` for many seeds and many prompts, where every seed has the same prompts.

    The variance is that over prompts and, beyond what their noise explains, that over seeds (two-way clusters,
    Cameron, Gelbach and Miller 2011), each with Student's quantile of its own degrees of freedom: two or three seeds
    say little of how much seeds vary. A single seed leaves prompts alone to go by; with one of each there is no
    interval. For a paired comparison the values are differences of the same seed on the same prompt. ``n`` is S, or X
    with a single seed.
    """
    found = np.asarray(values, np.float64)
    centre, (seeds, prompts) = float(found.mean()), found.shape
    if found.size < 2:
        return Interval(centre, None, None, 1)
    square = 0.0
    if prompts > 1:
        square += t95(prompts - 1) ** 2 * float(found.mean(0).var(ddof=1)) / prompts
    if seeds > 1:
        rest = found - found.mean(1, keepdims=True) - found.mean(0, keepdims=True) + centre
        noise = float((rest**2).sum()) / ((seeds - 1) * max(1, prompts - 1)) / found.size
        between = float(found.mean(1).var(ddof=1)) / seeds
        square += t95(seeds - 1) ** 2 * max(0.0, between - noise)
    half = math.sqrt(square)
    return Interval(centre, centre - half, centre + half, seeds if seeds > 1 else prompts)


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """``[X]``: mean reward of ``[X, n]`` less that of ``[X, m]``, prompt by prompt."""
    _same_prompts(ours, theirs)
    return np.asarray(ours, np.float64).mean(1) - np.asarray(theirs, np.float64).mean(1)


def same_draws(n: int, m: int, ours_each: int = 1, theirs_each: int = 1) -> np.ndarray:
    """``[n, m]`` bool: which pairs of answers share random numbers.

    Answer i of n was made of draws number i c to i c + c - 1: itself where c is 1, the best of them for best-of-c.

    Args:
        ours_each, theirs_each: c of either side.
    """
    ours, theirs = np.arange(n)[:, None] * ours_each, np.arange(m)[None, :] * theirs_each
    return (ours < theirs + theirs_each) & (theirs < ours + ours_each)


def wins(ours: np.ndarray, theirs: np.ndarray, coupled: np.ndarray | None = None) -> np.ndarray:
    """``[X]``: on each prompt, the share of pairs of answers in which ours has the higher reward; ties half.

    So wins(a, b) + wins(b, a) = 1, and 0.5 says that neither is better. Answers that share random numbers resemble each
    other, more so the nearer the policies are, and their pairs draw the share away from what independent answers give:
    two policies that differ only in one rare answer would win every pair that is not a tie.

    Args:
        coupled: ``[n, m]`` bool, pairs to leave out, as :func:`same_draws` knows them; default none.

    Raises:
        ValueError: no pair is left.
    """
    _same_prompts(ours, theirs)
    a, b = np.asarray(ours, np.float64)[:, :, None], np.asarray(theirs, np.float64)[:, None, :]
    found = (a > b) + 0.5 * (a == b)
    kept = np.ones(found.shape[1:], bool) if coupled is None else ~coupled
    if not kept.any():
        raise ValueError("a win rate needs answers that were drawn independently of each other")
    return found[:, kept].mean(1)


def share_of_wins(by_prompt: np.ndarray, pairs: int) -> Interval:
    """Mean of ``[X]`` win rates, each over so many pairs of answers, with an interval over prompts that keeps its
    coverage where all or none are won."""
    return share([Cluster(value * pairs, float(pairs), float(pairs)) for value in np.asarray(by_prompt).tolist()])


def share_of_verdicts(points: np.ndarray) -> Interval | None:
    """Mean of ``[S, X]`` points that S seeds win on X prompts, over the verdicts there are; NaN is none.

    The interval is that of a share over prompts, whatever the seed. With several seeds it is widened to the one over
    seeds and prompts, of the prompts with a verdict of every seed: where all or none are won only the first is of use,
    and only the second sees that another training would win on other prompts. None without any verdict.
    """
    found = np.asarray(points, np.float64)
    known = np.isfinite(found)
    if not known.any():
        return None
    over_prompts = share(clustered(np.nonzero(known)[1].tolist(), found[known].tolist()))
    whole = found[:, known.all(0)]
    if len(found) < 2 or not whole.size:
        return over_prompts
    low, high = over_seeds_and_prompts(whole).ends
    half, value = (high - low) / 2, over_prompts.value
    low, high = over_prompts.ends
    return Interval(value, max(0.0, min(low, value - half)), min(1.0, max(high, value + half)), over_prompts.n)


def at_kl(kl: Sequence[float], at: float) -> np.ndarray | None:
    """``[C]`` weights of the points of a training whose weighted mean is the policy at a KL; None where it is not
    reached, since nothing is extrapolated.

    Measured KLs go up and down by chance, so that a training seems to come by a level several times; taking the best of
    these crossings takes the luckiest reward. So KL is first fitted by the nearest sequence that never falls (isotonic
    regression by pooling adjacent violators, Barlow et al. 1972), which meets every level once, and the reward is
    linear between the pools beside it.

    Args:
        kl: of each point, by step, the start first; rewards play no part.
    """
    pools, weights, end = _rising(kl), np.zeros(len(kl)), 0
    for (k0, n0), (k1, n1) in pairwise(pools):
        end += n0
        if k0 <= at <= k1:
            part = (at - k0) / (k1 - k0)
            weights[end - n0 : end] = (1 - part) / n0
            weights[end : end + n1] = part / n1
            return weights
    return None


def reached(kl: Sequence[float]) -> float:
    """The highest KL that :func:`at_kl` knows of a training."""
    return _rising(kl)[-1][0] if kl else 0.0


def _rising(kl: Sequence[float]) -> list[tuple[float, int]]:
    """The nearest sequence that never falls, as its levels and how many points stand on each."""
    pools: list[tuple[float, int]] = []
    for value in kl:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (v1, n1), (v0, n0) = pools.pop(), pools.pop()
            pools.append(((v0 * n0 + v1 * n1) / (n0 + n1), n0 + n1))
    return pools


def matched_levels(reached: Sequence[float]) -> list[float]:
    """KLs to compare at: a quarter, a half and all of what half of the methods reach, to two digits, rounded down.

    Args:
        reached: the KL that each method reaches with every seed; those that never leave the start are left out.
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
