"""Judges that score each answer by itself: rules, functions, reward models. The order plays no part."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from afzal.errors import AfzalError
from afzal.judge.games import Game, Judge, Pair, Ruling

Score = Callable[[Sequence[Pair], Sequence[str]], Sequence[float]]
"""``(the pair that each answer belongs to, answers) -> scores``; larger is better."""


def by_score(score: Score) -> Judge:
    """The answer with the larger score wins; equal scores are a tie."""

    def judge(games: Sequence[Game]) -> list[Ruling]:
        pairs = [game.pair for game in games for _ in range(2)]
        scores = score(pairs, [answer for game in games for answer in game.pair.answers])
        found = []
        for one, two in zip(scores[0::2], scores[1::2], strict=True):
            if one != one or two != two:
                raise AfzalError(
                    "a score is no number", remedy="mend the rule or function, so that it always gives one"
                )
            found.append(Ruling("first" if one > two else "second" if one < two else "tie"))
        return found

    return judge


def rule(name: str, pattern: str | None = None) -> Score:
    """``longest`` and ``shortest`` in characters, or ``regex``: 1 where the pattern is found in the answer."""
    if name == "regex":
        expression = re.compile(pattern or "")
        return lambda pairs, answers: [float(bool(expression.search(a))) for a in answers]
    sign = 1 if name == "longest" else -1
    return lambda pairs, answers: [float(sign * len(a)) for a in answers]
