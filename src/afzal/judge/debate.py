"""Arguments before a judge: positions, transcripts, and quotes that are checked against the texts.

Each side of a debate argues for its assigned answer, in rounds; within a round neither side sees the other's argument
(Khan et al. 2024, arXiv 2402.06782; Irving et al. 2018, arXiv 1805.00899). A consultant is one such side alone.
An assistant criticises both answers (Saunders et al. 2022, arXiv 2206.05802).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from afzal.judge.games import Game

Protocol = Literal["debate", "consultant", "assisted", "alone"]
Side = str  # A, B, or empty for an assistant

CONTROLS: dict[str, tuple[Protocol, ...]] = {"debate": ("alone", "consultant"), "assisted": ("alone",)}
"""The controls that always run with each kind of judge that hears arguments, on the same pairs."""
PROTOCOL_NAMES: dict[Protocol, str] = {"alone": "alone", "consultant": "one consultant"}

_QUOTE = re.compile(r"<\s*quote\b[^>]*>(.*?)<\s*/\s*quote\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<\s*(/?)\s*quote\b[^>]*>", re.IGNORECASE)
_ALIKE = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "ʼ": "'", "ʻ": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-"}
)


@dataclass(frozen=True, slots=True)
class Position:
    """One turn to speak.

    Attributes:
        prompt: the prompt of both answers.
        own, other: the defended answer and the other one; for an assistant, the first and the second as shown.
        side: A if ``own`` is shown first, else B; empty for an assistant.
        round: from 1.
        transcript: the earlier rounds.
        item: the item's number, for speakers that need more than the text.
    """

    prompt: str
    own: str
    other: str
    side: Side
    round: int
    transcript: str
    item: int = 0

    def values(self) -> dict[str, str]:
        """The values for a prompt template."""
        return {name: getattr(self, name) for name in ("prompt", "own", "other", "side", "transcript")}


Speak = Callable[[Sequence[Position]], Sequence[str]]
"""From positions to the text spoken in each."""


def play_debates(
    games: Sequence[Game], protocol: Protocol, speak: Speak, *, rounds: int = 1, seed: int = 0
) -> list[Game]:
    """The games with the transcripts of their arguments.

    Args:
        seed: for drawing the answers that consultants defend; one draw for both orders of a pair.
    """
    sides: list[tuple[Side, ...]] = [_sides(game, protocol, seed) for game in games]
    for number in range(1, rounds + 1 if protocol == "debate" else 2):
        turns = [(k, side) for k, game_sides in enumerate(sides) for side in game_sides]
        positions = [_position(games[k], side, number) for k, side in turns]
        texts: dict[int, list[str]] = {}
        for (k, side), position, text in zip(turns, positions, speak(positions), strict=True):
            texts.setdefault(k, []).append(_entry(side, number, mark_quotes(text, _sources(position))))
        games = [
            replace(g, transcript="\n\n".join([g.transcript] * bool(g.transcript) + texts.get(k, [])))
            for k, g in enumerate(games)
        ]
    return list(games)


def _sides(game: Game, protocol: Protocol, seed: int) -> tuple[Side, ...]:
    if protocol == "debate":
        return "A", "B"
    if protocol == "assisted":
        return ("",)
    if protocol == "alone":
        return ()
    key = json.dumps([seed, game.sample, game.pair.prompt, sorted(game.pair.answers)], ensure_ascii=False)
    smaller = bool(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] & 1)
    first, second = game.shown
    # by the texts and not by their order, so that both orders defend the same answer
    return ("A",) if (first <= second) == smaller else ("B",)


def _position(game: Game, side: Side, number: int) -> Position:
    first, second = game.shown
    own, other = (second, first) if side == "B" else (first, second)
    return Position(game.pair.prompt, own, other, side, number, game.transcript, game.pair.item)


def _sources(position: Position) -> tuple[str, ...]:
    return position.prompt, position.own, position.other


def _entry(side: Side, number: int, text: str) -> str:
    """One side's text in one round. Its lines are indented, so that none of them can pass for a heading."""
    head = f"[For answer {side}, round {number}]" if side else "[Criticism]"
    return "\n".join([head, *(f"  {line}" for line in text.splitlines() or [""])])


def mark_quotes(text: str, sources: Sequence[str]) -> str:
    """A text with each quote marked: ``<quote verified>`` if it occurs in one of the sources, else ``<quote
    unverified>``. Marks already in the text are removed first."""
    folded = [folded_text(source) for source in sources]

    def marked(quote: re.Match[str]) -> str:
        words = _TAG.sub("", quote[1])
        known = folded_text(words)
        ok = bool(known) and any(known in source for source in folded)
        return f"<quote {'verified' if ok else 'unverified'}>{words}</quote>"

    plain = _TAG.sub(lambda tag: f"<{tag[1]}quote>", text)
    return _QUOTE.sub(marked, plain)


def folded_text(text: str) -> str:
    """A text normalised for comparing quotes: compatible characters, quotation marks, dashes, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_ALIKE).casefold().split())


def count_quotes(games: Sequence[Game]) -> dict[str, int]:
    """The numbers of ``verified`` and ``unverified`` quotes in the transcripts."""
    text = "\n".join(game.transcript for game in games)
    return {word: text.count(f"<quote {word}>") for word in ("verified", "unverified")}
