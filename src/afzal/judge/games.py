"""Pairs of answers to be judged, the games in which a judge sees them, and the rulings."""

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
"""Fields of a row that may name the kind of prompt."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt: the item's number, the responses' numbers, and the texts.

    With images or sounds, ``turns`` holds prompt and answers as in the item; in ``prompt`` the media appear as
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
    """One question to a judge: a pair in one order. ``swapped`` means that the second answer is shown first;
    ``transcript`` holds the arguments made before the judge, if any."""

    pair: Pair
    swapped: bool
    sample: int = 0
    transcript: str = ""

    @property
    def shown(self) -> tuple[str, str]:
        """The answers' texts in the order shown."""
        first, second = self.pair.answers
        return (second, first) if self.swapped else (first, second)

    @property
    def turns(self) -> tuple[Turns, Turns, Turns]:
        """Prompt and answers in the order shown: turns if there are media, else texts."""
        if self.pair.turns is None:
            return self.pair.prompt, *self.shown
        prompt, first, second = self.pair.turns
        return (prompt, second, first) if self.swapped else (prompt, first, second)


@dataclass(frozen=True, slots=True)
class Ruling:
    """The result of a game, in the numbering of the pair.

    Attributes:
        outcome: ``none`` if the judge gave no verdict, for the reason ``why``.
        p_first: probability that the first answer is better, for judges that state one.
        tokens: of the request and of the reply.
        unreadable_reply: the reply, if no verdict could be read from it.
    """

    outcome: Outcome
    p_first: float | None = None
    why: str = ""
    tokens: tuple[int, int] = (0, 0)
    unreadable_reply: str = ""


Judge = Callable[[Sequence[Game]], Sequence[Ruling]]
"""Gives a ruling on each game, in order."""


def in_pair_order(game: Game, outcome: Outcome, p_shown_first: float | None = None) -> tuple[Outcome, float | None]:
    """An outcome in the order shown, translated to the numbering of the pair."""
    if not game.swapped:
        return outcome, p_shown_first
    return MIRRORED[outcome], None if p_shown_first is None else 1 - p_shown_first


def pairs_of(items: Sequence[Item]) -> list[Pair]:
    """All pairs of answers of all items, in order; empty answers count as answers."""
    pairs = []
    for number, item in enumerate(items):
        prompt, shows = full_text(item.prompt), bool(media_of(item))
        texts = [answer_text(item.prompt, r.turns) for r in item.responses]
        for i, j in combinations(range(len(texts)), 2):
            turns = (item.prompt, item.responses[i].turns, item.responses[j].turns) if shows else None
            pairs.append(Pair(number, i, j, prompt, (texts[i], texts[j]), turns))
    return pairs


def answer_text(prompt: Turns, turns: Turns) -> str:
    """An answer as a judge reads it: its text, or the text of its messages."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1 and isinstance(turns[0].content, str):
        return turns[0].content
    return "\n\n".join(m.content if isinstance(m.content, str) else json.dumps(turns_to_json((m,))) for m in turns)


def games_of(pairs: Sequence[Pair], orders: Orders, *, samples: int = 1, seed: int = 0) -> list[Game]:
    """The games to play: each pair in both orders, in one order drawn from seed and texts, or in the original order."""
    games = []
    for pair in pairs:
        for sample in range(samples):
            if orders == "both":
                games += [Game(pair, False, sample), Game(pair, True, sample)]
            else:
                games.append(Game(pair, orders == "random" and _draw_order(pair, sample, seed), sample))
    return games


def _draw_order(pair: Pair, sample: int, seed: int) -> bool:
    media = [m.sha256 for m in pair.media]
    key = json.dumps([seed, sample, pair.prompt, pair.answers, *media], ensure_ascii=False)
    return bool(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] & 1)


def category_of(item: Item) -> str | None:
    """The kind of prompt that a row names; None if it names none."""
    return next((str(item.extra[name]) for name in CATEGORIES if item.extra.get(name) is not None), None)
