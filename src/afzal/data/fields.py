"""Read values from a row, and the two kinds of faults of a row.

A :class:`RowError` means damage (a field is missing or of the wrong type): it stops the reading unless the caller asked
to skip such rows. An :class:`UnusableError` row is valid but holds nothing to train on (an empty answer): it is dropped
and counted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

Row = Mapping[str, Any]

PROBABILITY = ("p", "p_chosen", "preference_prob", "probability")
ANNOTATOR = ("annotator", "annotator_id", "worker")
# Texts that count as a boolean, in any case (so do the numbers 1 and 0 and JSON's true and false) ...
WORDS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
# ... and further ones that count as the label of an answer. docs/formats.md lists both.
LABELS = {
    **WORDS,
    **dict.fromkeys(("good", "chosen", "accepted", "desirable", "positive", "preferred"), True),
    **dict.fromkeys(("thumbs_up", "thumbs up", "upvote", "like", "win"), True),
    **dict.fromkeys(("bad", "rejected", "undesirable", "negative", "dispreferred"), False),
    **dict.fromkeys(("thumbs_down", "thumbs down", "downvote", "dislike", "lose"), False),
}
# Numerals as JSON and spreadsheets write them; Python's own float() would also take "1_0" and full-width digits.
_NUMERAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class RowError(Exception):
    """A row that violates its format; ``reason`` is a code, ``detail`` a sentence."""

    def __init__(self, reason: str, field: str, problem: str) -> None:
        self.reason, self.field, self.problem = reason, field, problem
        self.detail = f"field '{field}' {problem}" if field else problem
        super().__init__(self.detail)

    def under(self, columns: Mapping[str, str]) -> str:
        """The sentence with the source's name for the field, if ``columns`` renames it."""
        name, *inside = re.split(r"(?=[.\[])", self.field, maxsplit=1)
        if name not in columns:
            return self.detail
        return f"field '{columns[name]}{''.join(inside)}' (given for {name}) {self.problem}"


class ScaleError(RowError):
    """An unknown number in a field of opinions: the whole column may use another scale.

    Dropping only these rows would turn the scale's lower end into "good", so the error always stops the reading.
    """


class UnusableError(Exception):
    """A valid row that holds nothing to learn from; ``reason`` is a code, ``detail`` a sentence."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail or reason)


def kind(value: Any) -> str:
    """A value's type in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def name_of(row: Row, names: str) -> str:
    """The first of ``"a|b|c"`` that the row holds, else ``""``."""
    for name in alternatives(names):
        if row.get(name) is not None:
            return name
    return ""


@cache
def alternatives(names: str) -> tuple[str, ...]:
    """``"a|b|c"`` split; cached, since parsers use the same few texts for every row."""
    return tuple(names.split("|"))


def has(row: Row, names: str) -> bool:
    """Whether the row holds one of ``"a|b|c"`` with a value that is not null."""
    return bool(name_of(row, names))


def value(row: Row, names: str) -> Any:
    """The value of the first name that is present; :class:`RowError` if none is."""
    name = name_of(row, names)
    if name:
        return row[name]
    first = names.split("|")[0]
    raise RowError("missing_field", first, "is null" if first in row else "is missing")


def text(row: Row, names: str) -> str:
    """A text, unchanged."""
    stated = row.get(names)  # fast path: most fields have only one name
    if type(stated) is str and "|" not in names:
        return stated
    name = name_of(row, names)
    raw = row[name] if name else value(row, names)
    if not isinstance(raw, str):
        raise RowError("wrong_type", name, f"is {kind(raw)}, not text")
    return raw


def optional_text(row: Row, names: str) -> str:
    """A text, or ``""`` if the row has none."""
    return text(row, names) if has(row, names) else ""


def array(row: Row, names: str) -> list[Any]:
    """A list; a JSON list in a text cell (as in CSV files) counts as one."""
    raw = value(row, names)
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        raw = _json_cell(raw, name_of(row, names))
    if not isinstance(raw, list | tuple):
        raise RowError("wrong_type", name_of(row, names), f"is {kind(raw)}, not a list")
    return list(raw)


def mapping(row: Row, names: str) -> Row:
    """An object."""
    raw = value(row, names)
    if not isinstance(raw, Mapping):
        raise RowError("wrong_type", name_of(row, names), f"is {kind(raw)}, not an object")
    return raw


def number(row: Row, names: str) -> float:
    """A finite number; numerals in text (as in CSV files) count."""
    raw, name = value(row, names), name_of(row, names)
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise RowError("wrong_type", name, f"is {kind(raw)}, not a number")
    try:
        result = float(raw) if not isinstance(raw, str) or is_numeral(raw) else math.nan
    except OverflowError:
        result = math.nan
    if result != result and not isinstance(raw, float):
        raise RowError("wrong_type", name, f"is {str(raw)[:40]!r}, not a number")
    if not math.isfinite(result):
        raise RowError("bad_value", name, f"is {result}, not a finite number")
    return result


def optional_number(row: Row, names: str) -> float | None:
    """A finite number, or None if the row has none (an empty CSV cell counts as none)."""
    name = name_of(row, names)
    return number(row, name) if name and row[name] != "" else None


def index(row: Row, names: str, size: int, *, base: int = 0) -> int:
    """An integer from ``base`` to ``base + size - 1``, returned as an index from 0."""
    position = number(row, names)
    if position != int(position) or not base <= position < base + size:
        raise RowError("bad_value", name_of(row, names), f"is {position:g}, not one of {base} to {base + size - 1}")
    return int(position) - base


def flag(row: Row, names: str) -> bool:
    """A boolean: true/false, 1/0, yes/no, as a value or as text in any case."""
    return _word_value(row, names, WORDS, "true or false")


def label(row: Row, names: str) -> bool:
    """Whether an answer is labelled good: the values of :func:`flag`, and the words in ``LABELS``.

    Raises:
        ScaleError: the label is another number, so the labels may be ratings.
    """
    return _word_value(row, names, LABELS, "a label (docs/formats.md lists them)")


def is_numeral(text: str) -> bool:
    """Whether a text is a number as JSON writes it."""
    return _NUMERAL.fullmatch(text.strip()) is not None


def is_missing(raw: Any) -> bool:
    """Whether a value of a table is not there: null, an empty cell, or NaN, as pandas writes it."""
    return raw is None or (isinstance(raw, str) and not raw.strip()) or (isinstance(raw, float) and raw != raw)


def looks_like_label(raw: Any) -> bool:
    """Whether :func:`label` accepts this value."""
    try:
        label({"value": raw}, "value")
    except RowError:
        return False
    return True


def _word_value(row: Row, names: str, words: Mapping[str, bool], expected: str) -> bool:
    raw, name = value(row, names), name_of(row, names)
    meaning = words.get(str(raw).strip().lower()) if isinstance(raw, bool | int | float | str) else None
    if meaning is None:
        is_number = isinstance(raw, int | float) or (isinstance(raw, str) and is_numeral(raw))
        raise (ScaleError if is_number else RowError)("bad_value", name, f"is {str(raw)[:40]!r}, not {expected}")
    return meaning


def opinion(row: Row) -> dict[str, Any]:
    """Keyword arguments of a Comparison whose first response is the chosen one: strength, probability, weight,
    annotator."""
    if row.keys().isdisjoint(_STATED):
        return {}
    facts: dict[str, Any] = {"strength": _strength(row)}
    probability = optional_number(row, _PROBABILITY)
    if probability is not None and not 0.0 <= probability <= 1.0:
        name = name_of(row, _PROBABILITY)
        raise RowError("bad_value", name, f"is {probability:g}, not a probability from 0 to 1")
    facts["probability"] = probability
    facts["weight"] = weight(row)
    annotator_field = name_of(row, _ANNOTATOR)
    facts["annotator"] = str(row[annotator_field]).strip() or None if annotator_field else None
    return facts


_PROBABILITY, _ANNOTATOR = "|".join(PROBABILITY), "|".join(ANNOTATOR)
_MARGIN = "margin|strength"
_BETTER = "score_chosen|chosen_score|chosen_rating|chosen_avg_rating|chosen-rating|rating_chosen"
_WORSE = "score_rejected|rejected_score|rejected_rating|rejected_avg_rating|rejected-rating|rating_rejected"
_STATED = frozenset("|".join((_PROBABILITY, _ANNOTATOR, _MARGIN, _BETTER, _WORSE, "weight")).split("|"))


def weight(row: Row) -> float:
    """The row's ``weight`` (at least 0); 1 if it has none."""
    stated = optional_number(row, "weight")
    if stated is not None and stated < 0:
        raise RowError("bad_value", "weight", f"is {stated:g}, below 0")
    return 1.0 if stated is None else stated


def _strength(row: Row) -> float | None:
    stated = optional_number(row, _MARGIN)
    if stated is not None:
        return stated
    better, worse = optional_number(row, _BETTER), optional_number(row, _WORSE)
    return None if better is None or worse is None else better - worse


def _json_cell(cell: str, name: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise RowError("wrong_type", name, "is text that begins like a list but is not JSON") from None
