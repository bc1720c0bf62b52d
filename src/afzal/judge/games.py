"""What is judged: pairs of answers, in which order they are shown, and what came of each game."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from afzal.data.turns import full_text
from afzal.judge.verdicts import MIRRORED, Outcome
from afzal.records import Item, Media, Turns, media_of, turns_to_json

Orders = Literal["both", "random", "first"]
CATEGORIES = ("category", "subset")
"""Fields of a row that say what kind of prompt it is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt: their item's number, their own numbers, and texts.

    Where there are images or sounds, ``turns`` are prompt and answers as the item has them; in ``prompt`` they stand as
    ``<image>`` and ``<audio>``.
    """

    item: int
    first: int
    second: int
    prompt: str
    answers: tuple[str, str]
    turns: tuple[Turns, Turns, Turns] | None = field(default=None, compare=False, repr=False)

    @property
    def media(self) -> tuple[Media, ...]:
        """The images and sounds of the prompt, of the first and of the second answer."""
        return tuple(m for turns in self.turns or () for m in media_of(turns))


@dataclass(frozen=True, slots=True)
class Game:
    """One question to a judge: a pair in an order. ``turned`` means that the second answer is shown first;
    ``transcript`` is what was argued before the judge, where somebody argued."""

    pair: Pair
    turned: bool
    sample: int = 0
    transcript: str = ""

    @property
    def shown(self) -> tuple[str, str]:
        """The answers in the order shown."""
        one, two = self.pair.answers
        return (two, one) if self.turned else (one, two)

    @property
    def turns(self) -> tuple[Turns, Turns, Turns]:
        """Prompt and answers in the order shown: with media where there are any, else texts."""
        if self.pair.turns is None:
            return self.pair.prompt, *self.shown
        prompt, one, two = self.pair.turns
        return (prompt, two, one) if self.turned else (prompt, one, two)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What came of a game, in the numbering of the pair.

    Attributes:
        outcome: ``none`` where the judge gave no verdict, and then ``why``.
        p_first: probability that the first answer is better, for judges that state one.
        tokens: asked and answered.
        unread: the reply that says no verdict, where there is one.
    """

    outcome: Outcome
    p_first: float | None = None
    why: str = ""
    tokens: tuple[int, int] = (0, 0)
    unread: str = ""


Judge = Callable[[Sequence[Game]], Sequence[Ruling]]
"""Whatever gives a ruling on each game, in order."""


def as_shown(game: Game, outcome: Outcome, p_shown_first: float | None = None) -> tuple[Outcome, float | None]:
    """An outcome in the order shown, in the numbering of the pair."""
    if not game.turned:
        return outcome, p_shown_first
    return MIRRORED[outcome], None if p_shown_first is None else 1 - p_shown_first


def pairs_of(items: Sequence[Item]) -> list[Pair]:
    """All pairs of answers of all items, in order. Empty answers are answers."""
    found = []
    for number, item in enumerate(items):
        prompt, shows = full_text(item.prompt), bool(media_of(item))
        texts = [answer_text(item.prompt, r.turns) for r in item.responses]
        for i, j in combinations(range(len(texts)), 2):
            turns = (item.prompt, item.responses[i].turns, item.responses[j].turns) if shows else None
            found.append(Pair(number, i, j, prompt, (texts[i], texts[j]), turns))
    return found


def answer_text(prompt: Turns, turns: Turns) -> str:
    """What a judge reads of an answer: its text, or the words of its messages."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1 and isinstance(turns[0].content, str):
        return turns[0].content
    return "\n\n".join(m.content if isinstance(m.content, str) else json.dumps(turns_to_json((m,))) for m in turns)


def games_of(pairs: Sequence[Pair], orders: Orders, *, samples: int = 1, seed: int = 0) -> list[Game]:
    """The games to play: both orders of every pair, one drawn by the seed and the texts, or as they stand."""
    found = []
    for pair in pairs:
        for sample in range(samples):
            if orders == "both":
                found += [Game(pair, False, sample), Game(pair, True, sample)]
            else:
                found.append(Game(pair, orders == "random" and _tossed(pair, sample, seed), sample))
    return found


def _tossed(pair: Pair, sample: int, seed: int) -> bool:
    shown = [m.sha256 for m in pair.media]
    about = json.dumps([seed, sample, pair.prompt, pair.answers, *shown], ensure_ascii=False)
    return bool(hashlib.sha256(about.encode("utf-8", "surrogatepass")).digest()[0] & 1)


def category_of(item: Item) -> str | None:
    """What kind of prompt a row says that it is; None where it says nothing."""
    return next((str(item.extra[name]) for name in CATEGORIES if item.extra.get(name) is not None), None)
