"""Rules that choose which pairs to ask about next from the belief about them: pure functions of numbers.

Shapes: N pairs, D features, M members of an ensemble. A larger score means a more useful question. Margins are those of
the first response over the second, in nats; swapping the responses of a pair changes no score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from .linear import sigmoid

Rule = Literal["d_optimal", "bald", "entropy", "random", "max_margin"]
"""Rules that rank pairs by the belief about their margins."""

_NODES = 24
_EQUAL = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """The belief about N pairs.

    Attributes:
        margins: ``[M, N]`` by each member of an ensemble, or by a single model (M = 1).
        features: ``[N, D]`` of the first response minus the second.
        precision: ``[D, D]`` of the parameters of a linear model on these features, after the questions so far.
    """

    margins: np.ndarray
    features: np.ndarray
    precision: np.ndarray

    @property
    def p_first(self) -> np.ndarray:
        """``[N]`` mean probability over the members that the first response is better."""
        return sigmoid(self.margins).mean(0)


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of a pair, and the score for which it was chosen."""

    pair: int
    score: float


def binary_entropy(p: np.ndarray) -> np.ndarray:
    """H(p) in nats; 0 at 0 and 1."""
    clipped = np.clip(p, 1e-300, 1.0)
    complement = np.clip(1 - p, 1e-300, 1.0)
    return -(p * np.log(clipped) + (1 - p) * np.log(complement))


def entropy(margins: np.ndarray) -> np.ndarray:
    """``[N]`` H(mean p) in nats: the uncertainty of the next answer, noise included."""
    return binary_entropy(_towards_half(sigmoid(margins).mean(0)))


def disagreement(margins: np.ndarray) -> np.ndarray:
    """``[N]`` H(mean p) - mean H(p) in nats: the information that an answer is expected to give about which member is
    right (BALD, Houlsby et al. 2011, arXiv 1112.5745). At least 0, and 0 if all members agree, as one alone does."""
    p = sigmoid(margins)
    if len(p) == 1 or (p == p[:1]).all():
        return np.zeros(p.shape[1])
    return np.maximum(0.0, entropy(margins) - binary_entropy(_towards_half(p)).mean(0))


def information(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """``[N]`` BALD in nats for margins that are normal with this mean and variance: H(E sigma(d)) - E H(sigma(d)).

    By Gauss-Hermite quadrature; 0 if the variance is 0.
    """
    nodes, weights = _quadrature()
    p = sigmoid(np.abs(mean)[:, None] + np.sqrt(variance)[:, None] * nodes)
    gain = np.maximum(0.0, binary_entropy(p @ weights) - binary_entropy(p) @ weights)
    return np.where(variance > 0, gain, 0.0)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, weights / weights.sum()


def _towards_half(p: np.ndarray) -> np.ndarray:
    """The smaller of p and 1 - p, so that entropies of a pair and of the swapped pair are equal to the last bit."""
    return np.minimum(p, 1 - p)


def max_margin(margins: np.ndarray) -> np.ndarray:
    """``[N]`` |mean margin| in nats (Muldrew et al. 2024, arXiv 2402.08114)."""
    return np.abs(margins.mean(0))


def by_score(scores: np.ndarray, n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs with the highest scores, best first.

    Args:
        order: ``[N]`` a random permutation that orders equal scores. A constant score thus gives exactly this order,
            that of random questions.
    """
    best = order[np.argsort(-scores[order], kind="stable")][:n]
    return [Choice(k, float(scores[k])) for k in best.tolist()]


def first_of_equals(scores: np.ndarray) -> int:
    """The index of the first score that equals the largest up to rounding."""
    return int(np.argmax(scores >= scores.max() - _EQUAL))


def d_optimal(belief: Belief, n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs that, chosen one after another, each add most to the log-determinant of the information matrix.

    The score is the gain log(1 + w x' A^-1 x) in nats with w = p (1 - p), which is log det(A + w x x') - log det A
    (Mukherjee et al. 2024, arXiv 2404.13895; Das et al. 2024, arXiv 2402.10500). Each choice updates A^-1 by rank one
    (Sherman and Morrison 1950), so a batch does not repeat the same question n times.
    """
    p = belief.p_first
    spread = p * (1 - p)
    return _greedy(belief, n, order, lambda variance, pairs: np.log1p(spread[pairs] * variance))


def bald(belief: Belief, n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs whose answers are expected to give the most information about the linear model's parameters.

    The score is :func:`information` of the pair's margin. Each choice narrows the posterior as its answer would on
    average, so a batch does not ask the same thing twice.
    """
    mean = belief.margins.mean(0)
    return _greedy(belief, n, order, lambda variance, pairs: information(mean[pairs], variance))


def ranked(rule: Rule, belief: Belief, n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs that a rule would ask about next, in order.

    BALD is the disagreement of the members if there are several, else that of the linear model's posterior.

    Args:
        order: ``[N]`` a random permutation that orders equal scores.
    """
    match rule:
        case "d_optimal":
            return d_optimal(belief, n, order)
        case "bald" if len(belief.margins) == 1:
            return bald(belief, n, order)
        case "bald":
            scores = disagreement(belief.margins)
        case "entropy":
            scores = entropy(belief.margins)
        case "max_margin":
            scores = max_margin(belief.margins)
        case "random":
            scores = np.zeros(len(order))
    return by_score(scores, n, order)


def may_be_wrong(points: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``[N]`` the probability that the majority of the votes on a pair would differ from that of many more votes.

    From the posterior Beta(1 + a, 1 + b) of the share of people who prefer the first response, with a and b votes for
    the two: 1/2 if they are even, 5/16 for 2 to 1, and lower the clearer they are.
    """
    from scipy.special import betainc

    minority = np.minimum(points, weight - points)
    return betainc(1 + weight - minority, 1 + minority, 0.5)


def _greedy(
    belief: Belief, n: int, order: np.ndarray, score: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[Choice]:
    """Greedy choices by ``score(variance [N] of the margins, pairs [N])``; each choice updates the covariance."""
    x, p = belief.features[order], belief.p_first[order]
    covariance = np.linalg.inv(belief.precision)
    variance = ((x @ covariance) * x).sum(1)
    live = np.ones(len(x), bool)
    chosen = []
    for _ in range(min(n, len(x))):
        scores = np.where(live, score(np.maximum(variance, 0.0), order), -np.inf)
        k = first_of_equals(scores)
        chosen.append(Choice(int(order[k]), float(scores[k])))
        live[k] = False
        along = covariance @ x[k]
        weight = p[k] * (1 - p[k])
        shrink = weight / (1 + weight * float(x[k] @ along))
        covariance = covariance - shrink * np.outer(along, along)
        variance = variance - shrink * (x @ along) ** 2
    return chosen
