"""The distance of an inferred reward from the known one, invariant to scale and to a constant per prompt.

A reward inferred from behaviour is known only up to a constant per prompt, and its scale only if the strength of the
pull to the reference is known. So correlations pooled over prompts are meaningless; every figure here is within
prompts.

Shapes: N responses, each with its prompt; X prompts with Y responses each. Rewards are larger for better responses.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from afzal.stats.intervals import Interval, clustered, mean, share
from afzal.stats.resampling import numbered, sums


def epic(
    truth: np.ndarray, inferred: np.ndarray, prompts: Sequence[Hashable], coverage: np.ndarray | None = None
) -> Interval:
    """EPIC distance of two rewards ``[N]`` in its bandit form, from 0 to 1, with an interval over prompts.

    Each reward is centred within its prompt, C(r) = r - E[r | x], and the distance is sqrt((1 - rho) / 2) with
    Pearson's rho under the coverage distribution (Gleave et al. 2021, arXiv 2006.13900, definition 4.7 for one step).
    Adding a constant per prompt or multiplying by a positive number changes nothing: 0 is the same reward, 1 its
    negative, sqrt(1/2) an unrelated one.

    Args:
        prompts: of each response.
        coverage: ``[N]`` weight of each response, 0 or more; default: equal weights.

    Returns:
        NaN if one of the rewards is constant within every prompt.
    """
    place = numbered(prompts)
    weight = np.ones(len(place)) if coverage is None else np.asarray(coverage, np.float64)
    a, b = (_centred(np.asarray(r, np.float64), place, weight) for r in (truth, inferred))
    parts = np.stack([weight * a * b, weight * a * a, weight * b * b], 1)

    def distance(totals: np.ndarray) -> np.ndarray:
        rho = totals[..., 0] / np.sqrt(totals[..., 1] * totals[..., 2])
        return np.sqrt(np.clip((1 - rho) / 2, 0.0, 1.0))

    return sums(parts, prompts).interval(distance)


def _centred(values: np.ndarray, place: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values less the weighted mean of their prompt; exactly zero if a prompt's values are all equal."""
    total = np.bincount(place, weight)
    first = np.zeros(len(total))
    first[place[::-1]] = values[::-1]  # removes a constant of any size exactly
    from_first = values - first[place]
    means = np.bincount(place, weight * from_first) / np.where(total > 0, total, 1.0)
    return from_first - means[place]


@dataclass(frozen=True, slots=True)
class Ordering:
    """How a reward orders the responses of each prompt compared with another: means over prompts, with 95% intervals.

    Attributes:
        kendall, spearman: rank correlations within a prompt (tau-b; mean ranks), from -1 to 1, averaged over the
            prompts in which both rewards vary; None without such prompts.
        accuracy: share of pairs ordered alike, among pairs of one prompt that the truth orders; equal inferred rewards
            count half. None if the truth orders no pair.
        prompts: number of prompts averaged over.
    """

    kendall: Interval | None
    spearman: Interval | None
    accuracy: Interval | None
    prompts: int


def ordering(truth: np.ndarray, inferred: np.ndarray, prompts: Sequence[Hashable]) -> Ordering:
    """Rank correlations and pairwise accuracy of two rewards ``[N]`` within prompts."""
    place = numbered(prompts)
    order = np.argsort(place, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if len(order) else []
    taus, rhos, keys, correct = [], [], [], []
    for number, rows in enumerate(groups):
        t, i = np.sign(_differences(truth[rows])), np.sign(_differences(inferred[rows]))
        norm = math.sqrt(float((t != 0).sum()) * float((i != 0).sum()))
        if norm:
            taus.append(float((t * i).sum()) / norm)
            rhos.append(_pearson(_ranks(truth[rows]), _ranks(inferred[rows])))
        hits = 0.5 + 0.5 * (t * i)[t != 0]
        keys += [number] * len(hits)
        correct += hits.tolist()
    accuracy = share(clustered(keys, correct)) if correct else None
    return Ordering(_mean(taus), _mean(rhos), accuracy, len(taus))


def pooled_spearman(truth: np.ndarray, inferred: np.ndarray, prompts: Sequence[Hashable]) -> Interval:
    """Spearman's rank correlation over all responses ``[N]``, with an interval over resamples of whole prompts.

    Only for rewards known to have the same constant for all prompts, such as those of one prompt, or of texts scored
    independently of a prompt; :func:`ordering` does not need this. Ranks are among all responses.
    """
    a, b = _ranks(np.asarray(truth, np.float64)), _ranks(np.asarray(inferred, np.float64))
    parts = np.stack([np.ones(len(a)), a, b, a * b, a * a, b * b], 1)

    def correlation(totals: np.ndarray) -> np.ndarray:
        n, x, y, xy, xx, yy = np.moveaxis(totals, -1, 0)
        return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))

    return sums(parts, prompts).interval(correlation)


def regret(log_base: np.ndarray, truth: np.ndarray, inferred: np.ndarray, beta: float) -> Interval:
    """The regret of an inferred reward's policy, pi_ref exp(r / beta) / Z, relative to the best one at the same beta.

    The measure is E[truth] - beta KL(policy || pi_ref), so the regret of a prompt is beta KL(induced || optimal): at
    least 0, and 0 only for the same reward up to a constant per prompt. In the units of the truth.

    Args:
        log_base: ``[X, Y]`` log-probabilities of the reference in nats; rows need not be normalised.
        truth, inferred: ``[X, Y]``; the inferred reward must be on the scale of ``beta``.
        beta: strength of the pull to the reference, above 0.

    Returns:
        The mean over prompts with its 95% interval.
    """
    optimal, induced = (_log_normalised(log_base + r / beta) for r in (truth, inferred))
    p = np.exp(induced)
    gap = np.where(p > 0, induced, 0.0) - np.where(p > 0, optimal, 0.0)
    by_prompt = beta * (p * gap).sum(1)
    regrets = _mean(by_prompt.tolist())
    assert regrets is not None
    return regrets


def _log_normalised(scores: np.ndarray) -> np.ndarray:
    peak = scores.max(1, keepdims=True)
    return scores - peak - np.log(np.exp(scores - peak).sum(1, keepdims=True))


def _differences(values: np.ndarray) -> np.ndarray:
    """``[K (K - 1) / 2]`` differences of all pairs, the lower index first."""
    i, j = np.triu_indices(len(values), 1)
    return values[i] - values[j]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks from 0; equal values share a rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return (below + (counts - 1) / 2)[inverse]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def _mean(values: Sequence[float]) -> Interval | None:
    """The mean over prompts ``[P]`` with its 95% interval; None without values."""
    if not values:
        return None
    estimate = mean(clustered(range(len(values)), values))
    low, high = estimate.ends if len(values) > 1 else (None, None)
    return Interval(estimate.mean, low, high, len(values))
