"""Which two models to compare next, where the aim is a leaderboard: Bradley and Terry's model of M models.

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
    """The models of a pool, and what is known about each two of them.

    Attributes:
        names: ``[M]``, sorted.
        x: ``[P, M]`` 1 for the first model, -1 for the second.
        points, weight: ``[P]`` as in :class:`Votes`, added up over the votes on the same two models.
        of: ``[N]`` int, the pair of models that wrote the pair of answers; -1 where they are one model, or unnamed.
    """

    names: tuple[str, ...]
    x: np.ndarray
    points: np.ndarray
    weight: np.ndarray
    of: np.ndarray


def matches_of(pool: Pool, votes: Votes) -> Matches:
    """The models by whom the answers of a pool were written, and the votes on them.

    Raises:
        AfzalError: no pair of answers is by two named models.
    """
    ours = [writers_of(pool.items[pair.item], pair.first, pair.second) for pair in pool.pairs]
    names = sorted({name for two in (*ours, *votes.writers) if two for name in two})
    if not any(ours):
        raise AfzalError(
            "no pair of answers is by two models",
            where="--by information, --by closest",
            why="the rule chooses which models to compare, and the rows do not say who wrote the answers",
            remedy="name the model of each response as its source, or choose another rule",
        )
    number = {pair: k for k, pair in enumerate(combinations(names, 2))}
    x = np.zeros((len(number), len(names)))
    for k, (a, b) in enumerate(combinations(range(len(names)), 2)):
        x[k, a], x[k, b] = 1.0, -1.0
    of = np.array([-1 if pair is None else number[min(pair), max(pair)] for pair in ours], dtype=np.int64)
    points, weight = np.zeros(len(number)), np.zeros(len(number))
    for two, p, w in zip(votes.writers, votes.p.tolist(), votes.w.tolist(), strict=True):
        if two is not None and p == p:
            k = number[min(two), max(two)]
            points[k] += w * (p if two[0] < two[1] else 1 - p)
            weight[k] += w
    return Matches(tuple(names), x, points, weight, of)


def strengths(x: np.ndarray, points: np.ndarray, weight: np.ndarray, ridge: float = RIDGE) -> Fit:
    """Strengths ``[M]`` in nats and their precision ``[M, M]``, from the votes on each pair of models."""
    share = np.where(weight > 0, points / np.where(weight > 0, weight, 1.0), 0.5)
    return fit(x, share, weight, ridge)


def expected_drop(x: np.ndarray, p: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """``[P]`` by how much one vote is expected to lower the summed variance of the strengths (A-optimal design).

    w |V x|^2 / (1 + w x' V x) with w = p (1 - p) and V the posterior covariance of the strengths. Their common level is
    a direction of its own, which no vote touches.
    """
    along = x @ np.linalg.inv(precision)
    w = p * (1 - p)
    return w * (along**2).sum(1) / (1 + w * (along * x).sum(1))


def closeness(p: np.ndarray) -> np.ndarray:
    """``[P]`` -|p - 1/2|: the pair of the most equal models first. It asks about the same two models for ever, so that
    those who were unlucky once stay where they are; measured, it is far worse than random questions."""
    return -np.abs(p - 0.5)


def first_of_best(scores: np.ndarray, order: np.ndarray) -> int:
    """The number of the best score; among those that differ by rounding alone, the first of them in ``order``."""
    return int(order[first_of_equals(scores[order])])


def next_matches(known: Matches, rule: Literal["information", "closest"], n: int, order: np.ndarray) -> list[Choice]:
    """The n pairs of answers to ask about next: the rule chooses two models, ``order`` the answers of theirs.

    Args:
        order: the pairs of answers that may be asked about, in random order.
    """
    model = strengths(known.x, known.points, known.weight)
    p, precision = sigmoid(known.x @ model.theta), model.precision
    waiting: dict[int, list[int]] = {}
    for k in order[::-1].tolist():
        if known.of[k] >= 0:
            waiting.setdefault(int(known.of[k]), []).append(k)
    ranks = np.array([k for k in dict.fromkeys(known.of[order].tolist()) if k >= 0], dtype=np.int64)
    chosen: list[Choice] = []
    while len(chosen) < n and waiting:
        scores = _scores(known, rule, p, precision)
        left = ranks[[int(k) in waiting for k in ranks]]
        two = first_of_best(scores, left)
        chosen.append(Choice(waiting[two].pop(), float(scores[two])))
        if not waiting[two]:
            del waiting[two]
        precision = precision + p[two] * (1 - p[two]) * np.outer(known.x[two], known.x[two])
    return chosen


def match_scores(known: Matches, rule: Literal["information", "closest"]) -> np.ndarray:
    """``[N]`` what a rule says of the two models that wrote each pair of answers; 0 where they are not two."""
    model = strengths(known.x, known.points, known.weight)
    by_two = _scores(known, rule, sigmoid(known.x @ model.theta), model.precision)
    return np.where(known.of >= 0, by_two[np.maximum(known.of, 0)], 0.0)


def _scores(
    known: Matches, rule: Literal["information", "closest"], p: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    return expected_drop(known.x, p, precision) if rule == "information" else closeness(p)


def simulate(
    x: np.ndarray, answers: list[np.ndarray], rule: MatchRule, votes: int, rng: np.random.Generator, *, refit: int = 5
) -> np.ndarray:
    """``[votes // refit, M]`` strengths after every ``refit`` votes, each question chosen by the rule and its answer
    drawn with replacement from those on record.

    Args:
        x: ``[P, M]`` as in :class:`Matches`.
        answers: per pair of models, the votes on record: 1 the first won, 0 the second, 0.5 a tie; at least one each.
    """
    points, weight, found = np.zeros(len(x)), np.zeros(len(x)), []
    model = strengths(x, points, weight)
    for asked in range(1, votes + 1):
        two = _next(x, sigmoid(x @ model.theta), weight, rule, rng)
        points[two] += answers[two][rng.integers(len(answers[two]))]
        weight[two] += 1
        if asked % refit == 0:
            model = strengths(x, points, weight)
            found.append(model.theta)
    return np.array(found)


def _next(x: np.ndarray, p: np.ndarray, weight: np.ndarray, rule: MatchRule, rng: np.random.Generator) -> int:
    if rule == "random":
        return int(rng.integers(len(x)))
    order = np.argsort(-rng.random(len(x)))
    if rule == "closest":
        return first_of_best(closeness(p), order)
    precision = RIDGE * np.eye(x.shape[1]) + (x * (weight * p * (1 - p))[:, None]).T @ x
    return first_of_best(expected_drop(x, p, precision), order)
