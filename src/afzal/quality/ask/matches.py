"""Choose which two models to compare next for a leaderboard, by the Bradley-Terry model of M models.

Shapes: M models, P pairs of models, N pairs of answers. A model's strength is a parameter of the linear model whose
features of an answer are 1 for the model that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from afzal.errors import AfzalError

from .linear import Fit, fit, sigmoid
from .pool import Pool, Votes, writers_of
from .rules import Choice, first_of_equals

MatchRule = Literal["information", "closest", "random"]
RIDGE = 0.1
"""Precision of the prior on every strength: a standard deviation of about 3 nats."""


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The models of a pool, and the votes on each pair of them.

    Attributes:
        names: ``[M]``, sorted.
        x: ``[P, M]`` 1 for the first model, -1 for the second.
        points, weight: ``[P]`` as in :class:`Votes`, summed over the votes on the same two models.
        match_of_pair: ``[N]`` int, the pair of models that wrote the pair of answers; -1 if it is one model, or one
            is unnamed.
    """

    names: tuple[str, ...]
    x: np.ndarray
    points: np.ndarray
    weight: np.ndarray
    match_of_pair: np.ndarray


def matches_of(pool: Pool, votes: Votes) -> Matches:
    """The models that wrote the answers of a pool, and the votes on them.

    Raises:
        AfzalError: no pair of answers is by two named models.
    """
    writers = [writers_of(pool.items[pair.item], pair.first, pair.second) for pair in pool.pairs]
    names = sorted({name for models in (*writers, *votes.writers) if models for name in models})
    if not any(writers):
        raise AfzalError(
            "no pair of answers is by two models",
            where="--by information, --by closest",
            why="the rule chooses which models to compare, and the rows do not say who wrote the answers",
            remedy="give the model of each response as its source, or choose another rule",
        )
    number = {pair: k for k, pair in enumerate(combinations(names, 2))}
    x = np.zeros((len(number), len(names)))
    for k, (a, b) in enumerate(combinations(range(len(names)), 2)):
        x[k, a], x[k, b] = 1.0, -1.0
    match_of_pair = np.array([-1 if pair is None else number[min(pair), max(pair)] for pair in writers], dtype=np.int64)
    points, weight = np.zeros(len(number)), np.zeros(len(number))
    for models, p, w in zip(votes.writers, votes.p.tolist(), votes.w.tolist(), strict=True):
        if models is not None and p == p:
            k = number[min(models), max(models)]
            points[k] += w * (p if models[0] < models[1] else 1 - p)
            weight[k] += w
    return Matches(tuple(names), x, points, weight, match_of_pair)


def strengths(x: np.ndarray, points: np.ndarray, weight: np.ndarray, ridge: float = RIDGE) -> Fit:
    """Strengths ``[M]`` in nats and their precision ``[M, M]``, from the votes on each pair of models."""
    share = np.where(weight > 0, points / np.where(weight > 0, weight, 1.0), 0.5)
    return fit(x, share, weight, ridge)


def expected_drop(x: np.ndarray, p: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """``[P]`` expected drop in the summed variance of the strengths from one vote (A-optimal design).

    w |V x|^2 / (1 + w x' V x) with w = p (1 - p) and V the posterior covariance of the strengths. Their common level is
    a separate direction, unaffected by votes.
    """
    along = x @ np.linalg.inv(precision)
    w = p * (1 - p)
    return w * (along**2).sum(1) / (1 + w * (along * x).sum(1))


def closeness(p: np.ndarray) -> np.ndarray:
    """``[P]`` -|p - 1/2|: highest for the most equal models. It keeps asking about the same two models, so a model that
    was unlucky early never recovers; in measurements it is far worse than random questions."""
    return -np.abs(p - 0.5)


def first_of_best(scores: np.ndarray, order: np.ndarray) -> int:
    """The index of the best score; among scores equal up to rounding, the first in ``order``."""
    return int(order[first_of_equals(scores[order])])


def next_matches(matches: Matches, rule: Literal["information", "closest"], n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs of answers to ask about next: the rule chooses two models, ``order`` a pair of their answers.

    Args:
        order: the pairs of answers that may be asked about, in random order.
    """
    model = strengths(matches.x, matches.points, matches.weight)
    p, precision = sigmoid(matches.x @ model.theta), model.precision
    pairs_of: dict[int, list[int]] = {}
    for k in order[::-1].tolist():
        if matches.match_of_pair[k] >= 0:
            pairs_of.setdefault(int(matches.match_of_pair[k]), []).append(k)
    ranks = np.array([k for k in dict.fromkeys(matches.match_of_pair[order].tolist()) if k >= 0], dtype=np.int64)
    chosen: list[Choice] = []
    while len(chosen) < n and pairs_of:
        scores = _scores(matches, rule, p, precision)
        remaining = ranks[[int(k) in pairs_of for k in ranks]]
        match = first_of_best(scores, remaining)
        chosen.append(Choice(pairs_of[match].pop(), float(scores[match])))
        if not pairs_of[match]:
            del pairs_of[match]
        precision = precision + p[match] * (1 - p[match]) * np.outer(matches.x[match], matches.x[match])
    return chosen


def match_scores(matches: Matches, rule: Literal["information", "closest"]) -> np.ndarray:
    """``[N]`` a rule's score of the two models that wrote each pair of answers; 0 if they are not two."""
    model = strengths(matches.x, matches.points, matches.weight)
    by_match = _scores(matches, rule, sigmoid(matches.x @ model.theta), model.precision)
    return np.where(matches.match_of_pair >= 0, by_match[np.maximum(matches.match_of_pair, 0)], 0.0)


def _scores(
    matches: Matches, rule: Literal["information", "closest"], p: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    return expected_drop(matches.x, p, precision) if rule == "information" else closeness(p)


def simulate(
    x: np.ndarray, answers: list[np.ndarray], rule: MatchRule, votes: int, rng: np.random.Generator, *, refit: int = 5
) -> np.ndarray:
    """``[votes // refit, M]`` strengths after every ``refit`` votes; the rule chooses each question, and its answer is
    sampled with replacement from the recorded ones.

    Args:
        x: ``[P, M]`` as in :class:`Matches`.
        answers: per pair of models, the recorded votes: 1 if the first won, 0 if the second, 0.5 for a tie; at least
            one.
    """
    points, weight, thetas = np.zeros(len(x)), np.zeros(len(x)), []
    model = strengths(x, points, weight)
    for n_votes in range(1, votes + 1):
        match = _next(x, sigmoid(x @ model.theta), weight, rule, rng)
        points[match] += answers[match][rng.integers(len(answers[match]))]
        weight[match] += 1
        if n_votes % refit == 0:
            model = strengths(x, points, weight)
            thetas.append(model.theta)
    return np.array(thetas)


def _next(x: np.ndarray, p: np.ndarray, weight: np.ndarray, rule: MatchRule, rng: np.random.Generator) -> int:
    if rule == "random":
        return int(rng.integers(len(x)))
    order = np.argsort(-rng.random(len(x)))
    if rule == "closest":
        return first_of_best(closeness(p), order)
    precision = RIDGE * np.eye(x.shape[1]) + (x * (weight * p * (1 - p))[:, None]).T @ x
    return first_of_best(expected_drop(x, p, precision), order)
