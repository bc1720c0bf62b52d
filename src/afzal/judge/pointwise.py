"""Judges that score each answer separately: rules, functions, reward models. The order has no effect."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from afzal.errors import AfzalError
from afzal.judge.games import Game, Judge, Pair, Ruling
from afzal.judge.verdicts import Outcome

Score = Callable[[Sequence[Pair], Sequence[str]], Sequence[float]]
"""``(the pair of each answer, answers) -> scores``; larger is better."""


def by_score(score: Score, *, stated: bool = False) -> Judge:
    """A judge by scores: the larger score wins, equal scores are a tie. Each answer of an item is scored once.

    Args:
        stated: whether the score gap states a probability: the first is better with sigma(gap).
    """

    def judge(games: Sequence[Game]) -> list[Ruling]:
        distinct: dict[tuple[int, int], tuple[Pair, str]] = {}
        for pair in (game.pair for game in games):
            for response, answer in zip((pair.first, pair.second), pair.answers, strict=True):
                distinct.setdefault((pair.item, response), (pair, answer))
        values = score([pair for pair, _ in distinct.values()], [answer for _, answer in distinct.values()])
        if any(value != value for value in values):
            raise AfzalError("a score is not a number", remedy="fix the rule or function so that it always returns one")
        known = dict(zip(distinct, values, strict=True))
        both = [(known[g.pair.item, g.pair.first], known[g.pair.item, g.pair.second]) for g in games]
        return [Ruling(_larger(*values), _sigmoid(values[0] - values[1]) if stated else None) for values in both]

    return judge


def _larger(first: float, second: float) -> Outcome:
    return "first" if first > second else "second" if first < second else "tie"


def _sigmoid(gap: float) -> float:
    return 0.5 * (1 + math.tanh(gap / 2))


def rule(name: str, pattern: str | None = None) -> Score:
    """The score of a rule: ``longest`` or ``shortest`` in characters, or ``regex``: 1 if the answer matches the
    pattern."""
    if name == "regex":
        expression = re.compile(pattern or "")
        return lambda pairs, answers: [float(bool(expression.search(a))) for a in answers]
    sign = 1 if name == "longest" else -1
    return lambda pairs, answers: [float(sign * len(a)) for a in answers]
