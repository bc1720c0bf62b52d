"""Propose field names for ``--columns``; only proposals that work on the file's rows are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from shlex import quote

from afzal.data.columns import renamed
from afzal.data.fields import Row
from afzal.data.format import Format

_MAX_ROWS = 8
_MAX_FIELDS = 3
_SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "problem", "context", "history", "text", "q"),
    "chosen": ("chosen", "better", "good", "preferred", "accepted", "winner", "positive", "win", "best"),
    "rejected": ("rejected", "worse", "bad", "dispreferred", "loser", "negative", "lose", "worst"),
    "completion": ("completion", "response", "answer", "output", "reply", "generation", "text"),
    "label": ("label", "good", "thumbs", "score", "reward", "rating", "feedback", "correct", "quality", "verdict"),
    "responses": ("responses", "completions", "generations", "answers", "candidates", "outputs"),
    "scores": ("scores", "rewards", "ratings", "score", "reward"),
    "winner": ("winner", "preferred", "preference", "choice", "vote", "verdict", "label", "better"),
}
_LAYOUTS = (
    ("prompt", "chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "responses", "scores"),
    ("winner",),
    ("chosen", "rejected"),
)
GENERAL_HINT = (
    "say which field is which with --columns, such as prompt=q,chosen=good,rejected=bad (names: docs/formats.md)"
)


def columns_hint(
    sample: Sequence[Row], detect_format: Callable[[Sequence[Row]], Format | None], field: str = ""
) -> str:
    """The first ``--columns`` with which the rows can be read, or a general hint.

    Args:
        detect_format: returns the format of rows if all of them can be read, else None.
        field: a field that must be among the renamed ones; "" for any.
    """
    rows = list(sample[:_MAX_ROWS])
    for columns in _candidates(rows[0]) if rows else ():
        if field and field not in columns.values():
            continue
        entry = detect_format([renamed(row, columns) for row in rows])
        if entry is not None and entry.family not in ("plain", "refused"):
            return f"say which field is which: --columns {quote(','.join(f'{k}={v}' for k, v in columns.items()))}"
    return GENERAL_HINT


def _candidates(row: Row) -> Iterator[Mapping[str, str]]:
    """Ways to name the row's fields, the likeliest first, without using a field twice."""
    for layout in _LAYOUTS:
        for fields in product(*(_similar_fields(row, name) for name in layout)):
            columns = {want: field for want, field in zip(layout, fields, strict=True) if want != field}
            if columns and len(set(fields)) == len(fields):
                yield columns


def _similar_fields(row: Row, want: str) -> list[str]:
    """The row's fields that most resemble one of Afzal's names; ids do not count."""
    fields = [str(field) for field in row if not str(field).lower().endswith("id") and "," not in str(field)]
    names = _SYNONYMS[want]
    exact = sorted((f for f in fields if f.lower() in names), key=lambda f: names.index(f.lower()))
    similar = [f for f in fields if f not in exact and any(len(name) > 1 and name in f.lower() for name in names)]
    return (exact + similar)[:_MAX_FIELDS]
