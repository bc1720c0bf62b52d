"""Recognise the values that say which of two answers is better: sides, names, numbers and signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from afzal.data.fields import Row, RowError, ScaleError, UnusableError, is_numeral
from afzal.records import SWAPPED, Outcome

STEMS = ("response", "answer", "completion", "output", "generation", "candidate", "reply", "assistant")
SIDES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"))
# "left" and "right" may be positions on a screen, so they are not aliases of other sides.
_ALIASES = {("1", "2"): (("a", "first", "one"), ("b", "second", "two")), ("a", "b"): (("one",), ("two",))}
_SUFFIXES = ("", "_wins", "_better", "_is_better", "_is_preferred")
_WORDS: dict[str, Outcome] = {
    **dict.fromkeys(
        ("tie", "draw", "equal", "same", "both_good", "both_equal", "equally_good", "no_preference"), "tie"
    ),
    **dict.fromkeys(("both_bad", "bothbad", "tie_bothbad", "tie_both_bad", "neither", "both_equally_bad"), "both_bad"),
}
_SIGNS = re.compile(r"\[*\s*([A-Z0-9]+)\s*(>>?|<<?|=+)\s*([A-Z0-9]+)\s*\]*", re.IGNORECASE)
_SIGNED: dict[str, tuple[Outcome, float | None]] = {
    ">": ("first", None),
    ">>": ("first", 2.0),
    "<": ("second", None),
    "<<": ("second", 2.0),
    "=": ("tie", None),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The fields of two answers, and how votes name them.

    Attributes:
        a, b: fields of the answers; ``sides`` holds the words in which their names differ.
        names: pairs of fields with other names of the answers, such as their models.
        counts: whether 1 means the first, 2 the second and 0 a tie. A single row cannot show this: 1 might be the
            second of 0 and 1.
    """

    a: str
    b: str
    sides: tuple[str, str]
    names: tuple[tuple[str, str], ...] = ()
    counts: bool = False


def plain(name: str) -> str:
    """``"Response A"``, ``"responseA"`` and ``"response_a"`` as ``"response_a"``; ``"[[A]]"`` as ``"a"``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", str(name))
    return "_".join(words).lower()


@lru_cache(maxsize=256)
def pair_of(keys: tuple[str, ...]) -> Pair | None:
    """The two answers among the fields of a row, if there is exactly one such pair."""
    by_plain_name = {plain(name): name for name in keys}
    pairs = [
        (by_plain_name[f"{stem}_{a}"], by_plain_name[f"{stem}_{b}"], (a, b), stem)
        for stem in STEMS
        for a, b in SIDES
        if f"{stem}_{a}" in by_plain_name and f"{stem}_{b}" in by_plain_name
    ]
    if len(pairs) != 1:
        return None
    a, b, sides, stem = pairs[0]
    schemes = ("model_{}", "source_{}", "generator_{}", "model_name_{}", stem + "_{}_model")
    names = [
        (by_plain_name.get(scheme.format(sides[0]), ""), by_plain_name.get(scheme.format(sides[1]), ""))
        for scheme in schemes
    ]
    return Pair(a, b, sides, tuple((x, y) for x, y in names if x and y))


def read_vote(raw: Any, pair: Pair, row: Row, field: str) -> tuple[Outcome, float | None]:
    """The outcome that a value states for the two answers of a row, and the strength if a sign states one.

    Raises:
        UnusableError: the value is empty.
        ScaleError: it is a number that names no side.
        RowError: it is anything else unknown.
    """
    stated = "" if raw is None else f"{raw:g}" if isinstance(raw, float) else str(raw).strip()
    if not stated:
        raise UnusableError("no_votes", f"'{field}' is empty")
    if not isinstance(raw, bool):
        # "-2" does not mean side 2: a signed scale is a different kind of opinion
        word = stated if is_numeral(stated) else plain(stated)
        outcomes = _words(pair.sides, pair.counts)
        if word in outcomes:
            return outcomes[word], None
        if (signed := _SIGNS.fullmatch(stated)) and (outcome := _by_sign(signed, outcomes)):
            return outcome
        if (by_name := _by_name(stated, pair, row)) is not None:
            return by_name, None
    number = isinstance(raw, bool | int | float) or is_numeral(stated)
    expected = f"{pair.sides[0]}, {pair.sides[1]}, tie or both_bad"
    why = f"is {stated[:40]!r}, not one of {expected}"
    if number and stated in ("0", "1", "2"):
        why += "; without both a 1 and a 2 among the first rows, 1 may be the first answer or the second"
    raise (ScaleError if number else RowError)("bad_value", field, why)


@lru_cache(maxsize=64)
def _words(sides: tuple[str, str], counts: bool) -> dict[str, Outcome]:
    words = dict(_WORDS)
    outcomes: tuple[Outcome, Outcome] = ("first", "second")
    for k, outcome in enumerate(outcomes):
        for side in (sides[k], *_ALIASES.get(sides, ((), ()))[k]):
            for head in ("", *(f"{stem}_" for stem in (*STEMS, "model", "option", "text"))):
                words |= {f"{head}{side}{tail}": outcome for tail in _SUFFIXES}
    if counts and sides != ("0", "1"):
        words |= {"1": "first", "2": "second", "0": "tie"}
    return words


def _by_sign(signed: re.Match[str], outcomes: dict[str, Outcome]) -> tuple[Outcome, float | None] | None:
    """``"A>>B"``: the first, clearly; ``"B>A"``: the second. None if the letters are not the two sides."""
    left, sign, right = signed.groups()
    order = outcomes.get(left.lower()), outcomes.get(right.lower())
    outcome, strength = _SIGNED[sign[:2] if sign[0] != "=" else "="]
    if order == ("first", "second"):
        return outcome, strength
    return (SWAPPED[outcome], strength) if order == ("second", "first") else None


def _by_name(stated: str, pair: Pair, row: Row) -> Outcome | None:
    """The answer that a value names by its model or its text, if these differ between the answers."""
    for a, b in (*pair.names, (pair.a, pair.b)):
        names = [row.get(field) for field in (a, b)]
        matches = [isinstance(name, str) and name.strip() == stated for name in names]
        if sum(matches) == 1:
            return "first" if matches[0] else "second"
    return None
