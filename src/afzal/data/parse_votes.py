"""Rows of one vote each: a prompt, two answers, and who won in the eyes of one annotator."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from afzal.data.fields import Row, RowError, ScaleError, UnusableError, has, is_numeral, name_of, text, value, weight
from afzal.data.turns import answer_text, ask, messages, reply
from afzal.records import Comparison, Item, Outcome, Response, Turns

PROMPTS = "prompt|instruction|question|query|context"
WINNERS = ("winner", "preference", "preferred", "choice", "vote", "verdict", "label", "better", "preferred_response")
ANNOTATORS = "annotator|annotator_id|worker|rater|user|judge"
_STEMS = ("response", "answer", "completion", "output", "generation", "candidate", "reply", "assistant")
_SIDES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"))
_OUTCOMES: dict[str, Outcome] = {
    **dict.fromkeys(("tie", "draw", "equal", "same"), "tie"),
    **dict.fromkeys(("both_bad", "bothbad", "tie_bothbad", "tie_both_bad", "neither"), "both_bad"),
}


def fits(row: Row) -> bool:
    """Whether the row holds a prompt, two answers of one name with two sides, and a winner with a known value."""
    layout = _layout(tuple(row))
    if layout is None or not has(row, PROMPTS):
        return False
    try:
        _outcome(row, *layout)
    except (RowError, UnusableError):
        return False
    return all(row[name] is not None for name in layout[:2])


def fields_read(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of two answers, a winner and an annotator among these."""
    return (*(_layout(keys) or ()), *(name for name in ANNOTATORS.split("|") if name in keys))


def vote(row: Row) -> Item:
    """One vote on two answers; the rows on one prompt and the same two answers are joined by :func:`joined`."""
    layout = _layout(tuple(row))
    if layout is None:
        raise RowError("missing_field", WINNERS[0], "is missing, or the two answers are")
    who = name_of(row, ANNOTATORS)
    opinion = Comparison(0, 1, _outcome(row, *layout), annotator=str(row[who]) if who else None, weight=weight(row))
    prompt = value(row, PROMPTS)
    a, b = (_reply(row, name) for name in layout[:2])
    asked = ask(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")
    return Item("", asked, (Response(a), Response(b)), (opinion,))


def joined(items: Iterable[Item]) -> list[Item]:
    """Items on the same prompt and the same two answers as one, with the votes of all; the first one's place and id."""
    by_question: dict[tuple[Turns, frozenset[Turns]], list[Item]] = {}
    for item in items:
        answers = frozenset(response.turns for response in item.responses)
        by_question.setdefault((item.prompt, answers), []).append(item)
    return [
        replace(same[0], votes=tuple(v for item in same for v in _votes(item, same[0])))
        for same in by_question.values()
    ]


def _votes(item: Item, first: Item) -> list[Comparison]:
    """The votes of an item in the numbering of the first one on the same answers."""
    votes = [v for v in item.votes if isinstance(v, Comparison)]
    if item.responses[0].turns == first.responses[0].turns:
        return votes
    return [replace(v.swap(), first=v.first, second=v.second, shown_first=1) for v in votes]


def _reply(row: Row, name: str) -> Turns:
    given = row[name]
    said = messages(given, name) if isinstance(given, list | dict) else reply(text(row, name))
    if not any(m.role == "assistant" for m in said) and answer_text(said):
        raise RowError("bad_value", name, "holds no answer of the assistant")
    return said


def _outcome(row: Row, a: str, b: str, winner: str) -> Outcome:
    got = row[winner]
    text_of = "" if got is None else f"{got:g}" if isinstance(got, float) else str(got).strip()
    # "-2" is no name of side 2: a signed scale is another opinion
    said = text_of if is_numeral(text_of) else _plain(text_of)
    if not text_of:
        raise UnusableError("no_votes", f"'{winner}' is empty")
    sides = _side(_plain(a)), _side(_plain(b))
    for side, outcome in zip(sides, ("first", "second"), strict=True):
        if not isinstance(got, bool) and said in (side, *(f"{stem}_{side}" for stem in (*_STEMS, "model"))):
            return outcome  # pyright: ignore[reportReturnType]
    if said in _OUTCOMES:
        return _OUTCOMES[said]
    number = isinstance(got, int | float) or (isinstance(got, str) and is_numeral(got))
    known = f"{sides[0]}, {sides[1]}, tie or both_bad"
    raise (ScaleError if number else RowError)("bad_value", winner, f"is {str(got)[:40]!r}, not one of {known}")


@lru_cache(maxsize=256)
def _layout(keys: tuple[str, ...]) -> tuple[str, str, str] | None:
    """(field of one answer, field of the other, field of the winner), where there is one such choice."""
    plain = {_plain(name): name for name in keys}
    pairs = [
        (plain[f"{stem}_{a}"], plain[f"{stem}_{b}"])
        for stem in _STEMS
        for a, b in _SIDES
        if f"{stem}_{a}" in plain and f"{stem}_{b}" in plain
    ]
    winners = [plain[name] for name in WINNERS if name in plain]
    return (*pairs[0], winners[0]) if len(pairs) == 1 and len(winners) == 1 else None


def _plain(name: str) -> str:
    """``"Response A"``, ``"responseA"`` and ``"response_a"`` as ``"response_a"``; ``"[[A]]"`` as ``"a"``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", str(name))
    return "_".join(words).lower()


def _side(name: str) -> str:
    return name.rsplit("_", 1)[-1]
