"""Parse values that arrive as text, as in CSV cells: lists and messages written as JSON or as Python's ``repr``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from afzal.data.fields import Row, RowError
from afzal.data.mediaparts import COLUMNS
from afzal.data.turns import looks_like_messages

# Fields that hold lists or objects in some format: a text there that begins like one is parsed as one.
_STRUCTURED = frozenset(
    {"answers", "annotations", "chat_template_kwargs", "completions", "data", "generation_models", "generations"}
    | {"history", "info", "models", "num_voters", "pairs", "ratings", "responses", "rewards", "scores", "summaries"}
    | {"tools", "votes", *COLUMNS}
)
_OPENERS = frozenset("[{( \t\r\n")
_OPENED = re.compile(r"\s*[\[{(]")
_MAX_REPR = 2**20  # characters; Python's parser needs far more memory than a JSON parser


def unpacked(row: Row) -> Row:
    """The row with lists and messages parsed from the texts that spell them.

    Messages are parsed in any field. Other lists and objects are parsed only in fields where some format expects them,
    since an answer may well be JSON.

    Raises:
        RowError: a text begins like messages but cannot be parsed as such; it must not be trained on as text.
    """
    spelled = [name for name, cell in row.items() if type(cell) is str and cell[:1] in _OPENERS and _begins(cell)]
    if not spelled:
        return row
    changed = {name: value for name in spelled if (value := _structure(name, row[name])) is not None}
    return {**row, **changed} if changed else row


def structure(cell: str) -> Any:
    """The list or object that a text spells as JSON or as Python's ``repr``; None if it spells neither."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = _literal(cell.strip())
    return value if isinstance(value, list | dict) else None


def _begins(cell: str) -> bool:
    return _OPENED.match(cell) is not None


def _structure(name: str, cell: str) -> Any:
    names_keys = _names_keys(cell)
    if not names_keys and name not in _STRUCTURED:
        return None
    value = structure(cell)
    if looks_like_messages(value) or (value is not None and name in _STRUCTURED):
        return value
    if names_keys and isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        return value
    if names_keys and value is None:
        raise RowError("wrong_type", name, "is text that begins like messages, but is neither JSON nor Python's repr")
    return None


def _names_keys(cell: str) -> bool:
    """Whether the beginning of a text contains the quoted keys of a message."""
    head = cell[:4000]
    return any(
        f"{q}{role}{q}" in head and f"{q}{content}{q}" in head
        for q in "\"'"
        for role, content in (("role", "content"), ("from", "value"))
    ) and cell.lstrip().startswith(("[{", "{", "[ {", "[\n", "[\r", "({", "[[{"))


def _literal(cell: str) -> Any:
    """The value of a Python literal that ``repr`` would write the same way; None for anything else.

    The comparison refuses literals that Python does not read as they look: adjacent texts, as NumPy prints them, would
    be joined into one.
    """
    if len(cell) > _MAX_REPR:
        return None
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return value if repr(value) == cell else None
