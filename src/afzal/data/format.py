"""The entries of the table of formats, and the conditions on a row's values that they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afzal.data.fields import ANNOTATOR, PROBABILITY, Row, UnusableError, alternatives, has, looks_like_label, name_of
from afzal.data.mediaparts import COLUMNS
from afzal.data.turns import ROLES, looks_like_messages, transcript
from afzal.records import Item

Parsed = Item | Iterator[Item | UnusableError]
Family = Literal["preference", "unpaired", "votes", "plain", "refused"]

SYSTEM = "system|system_prompt|system_message"
"""Fields with the system message, which the reader puts before the prompt, except in formats without ``system``."""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """One data format for preferences.

    Attributes:
        name: the value for ``--format``.
        requires: fields a row must hold with a value.
        parse: one row to an item (or several); raises RowError or UnusableError. For a refused format: None.
        reads: which value is read from which field, in words, for the user.
        family: preference (which is better), unpaired (labels), votes (one vote per row; rows on the same answers form
            one item), plain (nothing to compare), refused.
        accepts: a further condition on the row's values.
        optional: fields that are read when present.
        refusal: why the format is refused, and what to do.
        also: the further fields that are read, as a function of a row's field names.
        annotations: the facts about the answers that the parser reads: all that :func:`afzal.data.fields.opinion`
            knows, only the weight, or none; None for the family's default.
        system: whether a system message may precede the prompt.
        keeps_empty: whether empty answers are kept, since people judged them.
        settle: returns the format with a parser for this source, given its first rows, for facts that no single row
            shows, such as the scale of a column of numbers.
    """

    name: str
    requires: tuple[str, ...]
    parse: Callable[[Row], Parsed] | None
    reads: Mapping[str, str]
    family: Family = "preference"
    accepts: Callable[[Row], bool] = lambda row: True
    optional: tuple[str, ...] = ()
    refusal: str = ""
    also: Callable[[tuple[str, ...]], Iterable[str]] = lambda keys: ()
    annotations: Literal["all", "weight", "none"] | None = None
    system: bool = True
    keeps_empty: bool = False
    settle: Callable[[Format, Sequence[Row]], Format] | None = None

    def applies(self, row: Row) -> bool:
        """Whether a row has the required fields and meets the format's condition."""
        return all(has(row, field) for field in self.requires) and self.accepts(row)

    def used(self) -> frozenset[str]:
        """The top-level fields that the parser reads (a row's other fields are kept separately)."""
        read = _ANNOTATIONS[self.annotations or _DEFAULT_ANNOTATIONS[self.family]].union(
            *map(alternatives, (*self.requires, *self.optional))
        )
        return read.union(alternatives(SYSTEM)) if self.system else read


_DEFAULT_ANNOTATIONS = {
    "preference": "all",
    "unpaired": "weight",
    "votes": "weight",
    "plain": "none",
    "refused": "none",
}
_ALWAYS = frozenset({"id", "tools", "chat_template_kwargs", *COLUMNS})
_ANNOTATIONS = {
    "none": _ALWAYS,
    "weight": _ALWAYS | {"weight"},
    "all": _ALWAYS
    | {*PROBABILITY, *ANNOTATOR, "weight", "margin", "strength"}
    | {f"{side}_{what}" for side in ("chosen", "rejected") for what in ("score", "rating", "avg_rating", "model")}
    | {f"{what}_{side}" for side in ("chosen", "rejected") for what in ("score", "rating")}
    | {f"{side}-{what}" for side in ("chosen", "rejected") for what in ("rating", "model")},
}


def texts(*fields: str) -> Callable[[Row], bool]:
    """Whether all these fields hold texts."""
    return lambda row: all(isinstance(row[name_of(row, field)], str) for field in fields)


def turns(*fields: str) -> Callable[[Row], bool]:
    """Whether all these fields hold messages."""
    return lambda row: all(looks_like_messages(row[name_of(row, field)]) for field in fields)


def is_list(field: str) -> Callable[[Row], bool]:
    """Whether the field holds a list."""
    return lambda row: isinstance(row[name_of(row, field)], list | tuple)


def is_label(field: str) -> Callable[[Row], bool]:
    """Whether the field's value can be read as good or bad."""
    return lambda row: looks_like_label(row[name_of(row, field)])


def is_transcript(row: Row) -> bool:
    """Whether ``chosen`` and ``rejected`` are Human/Assistant transcripts, each in one text."""
    return all(isinstance(row[f], str) and transcript(row[f][:2000]) is not None for f in ("chosen", "rejected"))


def repeats_prompt(row: Row) -> bool:
    """Whether both answers begin with the prompt."""
    return texts("prompt", "chosen", "rejected")(row) and all(
        row["prompt"].strip() and row[f].startswith(row["prompt"]) for f in ("chosen", "rejected")
    )


def either_turns(row: Row) -> bool:
    """Whether any of ``prompt``, ``chosen`` and ``rejected`` holds messages."""
    return (
        looks_like_messages(row["chosen"]) or looks_like_messages(row["rejected"]) or looks_like_messages(row["prompt"])
    )


def follows_dialogue(row: Row) -> bool:
    """Whether a dialogue takes the place of the prompt, and the answers are texts or assistant turns."""
    return (
        not has(row, "prompt")
        and turns(DIALOGUES)(row)
        and all(_is_answer(row[side]) for side in ("chosen", "rejected"))
    )


DIALOGUES = "conversations|conversation|messages|dialogue|dialog|context|history"


def _is_answer(value: Any) -> bool:
    first = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(first, Mapping):
        return isinstance(value, str)
    return looks_like_messages(value) and ROLES.get(str(first.get("role", first.get("from"))).lower()) == "assistant"


def no_prompt(row: Row) -> bool:
    """Whether the answers are texts and there is no ``prompt``."""
    return not has(row, "prompt") and texts("chosen|accepted", "rejected")(row)
