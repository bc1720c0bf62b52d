"""Rename a source's fields to Afzal's names, as given by ``--columns``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from afzal.data.fields import Row
from afzal.data.json_reader import Fault, RawRow
from afzal.errors import AfzalError

_ABSENT = object()


def renamed_rows(stream: Iterator[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    """Rows with ``columns`` applied.

    Raises:
        AfzalError: the first valid row lacks one of the fields.
    """
    return _renamed_rows(stream, columns) if columns else stream


def _renamed_rows(stream: Iterator[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    checked = False
    for raw in stream:
        if isinstance(raw.value, Fault):
            yield raw
            continue
        if not checked and (missing := [path for path in columns.values() if _reach(raw.value, path) is _ABSENT]):
            raise _unknown_column(raw, missing[0])
        checked = True
        yield RawRow(raw.where, renamed(raw.value, columns))


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the source's names replaced by Afzal's; missing fields are left out."""
    reached = {name: _reach(row, path) for name, path in columns.items()}
    sources = {path for path in columns.values() if path in row}
    others = {k: v for k, v in row.items() if k not in sources}
    return others | {name: value for name, value in reached.items() if value is not _ABSENT}


def _reach(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    if not dot or not isinstance(row, Mapping) or head not in row:
        return _ABSENT
    return _reach(row[head], rest)


def _unknown_column(raw: RawRow, name: str) -> AfzalError:
    assert isinstance(raw.value, Mapping)
    fields = [str(field) for field in raw.value]
    close = get_close_matches(name, fields, n=1)
    remedy = f"did you mean '{close[0]}'?" if close else "use the field names of the file"
    return AfzalError(f"no field '{name}'", where=raw.where, why=f"the row has: {', '.join(fields)}", remedy=remedy)
