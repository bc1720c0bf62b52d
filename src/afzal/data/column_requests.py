"""Further columns of rows that user functions ask for, by the names of their parameters."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afzal.errors import AfzalError
from afzal.records import Item

_TRL_PARAMETERS = ("prompts", "completions")
"""Parameters of a TRL reward function, which receives lists."""


@dataclass(frozen=True, slots=True)
class ColumnRequest:
    """The columns that a function asks for in addition to its usual arguments.

    Attributes:
        required: parameters without a default.
        optional: parameters with a default, which is used if no row has such a column.
        takes_all: whether it takes ``**columns``: all columns other than prompt and answer.
        takes_lists: whether it is called like a TRL reward function: once for many answers, with lists by name.
        takes_prompts: whether such a function also takes the prompts.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_all: bool = False
    takes_lists: bool = False
    takes_prompts: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The columns asked for by name."""
        return (*self.required, *self.optional)

    @property
    def any(self) -> bool:
        """Whether the function asks for any column."""
        return self.takes_all or bool(self.names)

    def __or__(self, other: ColumnRequest) -> ColumnRequest:
        """The columns that either function asks for."""
        required = tuple(dict.fromkeys((*self.required, *other.required)))
        optional = tuple(n for n in dict.fromkeys((*self.optional, *other.optional)) if n not in required)
        return ColumnRequest(required, optional, self.takes_all or other.takes_all)

    def columns(self, items: Iterable[Item]) -> tuple[str, ...]:
        """The items' columns that are asked for, sorted by name."""
        names = {name for item in items for name in item.extra} if self.any else set()
        return tuple(sorted(names if self.takes_all else names.intersection(self.names)))

    def select(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that are asked for."""
        return {name: value for name, value in row.items() if self.takes_all or name in self.names}

    def refuse_missing(self, columns: Iterable[str], name: str, where: str = "") -> None:
        """Refuse a parameter that no row has a value for.

        Args:
            columns: the existing columns.
            name: the function's name.

        Raises:
            AfzalError: a column is missing; names the parameter and the existing columns.
        """
        columns = sorted(columns)
        lacking = [n for n in self.required if n not in columns]
        if lacking:
            existing = f"their other columns are {', '.join(columns)}" if columns else "they have no other columns"
            raise AfzalError(
                f"{name} asks for {' and '.join(lacking)}, which no row has",
                where=where,
                why=f"an additional parameter is read from a column of the rows, and {existing}",
                remedy="give the parameter its column's name, give it a default, or add the column to the rows",
            )


def column_request(fn: Callable[..., Any], n_usual: int = 2) -> ColumnRequest:
    """The columns that a function asks for beyond its first ``n_usual`` parameters. A function with a parameter
    ``completions`` is a TRL reward function: it also gets ``prompts`` and ``completions`` by name."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # written in C
        return ColumnRequest()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_lists = n_usual == 2 and any(p.name == "completions" for p in parameters)
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given_names = {p.name for p in by_place[:n_usual]} if not takes_lists else set(_TRL_PARAMETERS)
    further = [
        p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given_names
    ]
    required = tuple(p.name for p in further if p.default is p.empty)
    optional = tuple(p.name for p in further if p.default is not p.empty)
    takes_prompts = not takes_lists or takes_all or any(p.name == "prompts" for p in parameters)
    return ColumnRequest(required, optional, takes_all, takes_lists, takes_prompts)


def merged_request(requests: Iterable[tuple[str, ColumnRequest]]) -> ColumnRequest:
    """The columns that several named functions ask for."""
    union = ColumnRequest()
    for _, request in requests:
        union = union | request
    return union


def refuse_missing_columns(requests: Sequence[tuple[str, ColumnRequest]], items: Sequence[Item], where: str) -> None:
    """Refuse a parameter of one of these functions if no item has a column for it.

    Args:
        where: the source of the items.

    Raises:
        AfzalError: as for :meth:`ColumnRequest.refuse_missing`.
    """
    if any(request.required for _, request in requests):
        columns = {key for item in items for key in item.extra}
        for name, request in requests:
            request.refuse_missing(columns, name, where)


def column_values(items: Sequence[Item], names: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of each item; None if its row lacks the column."""
    return [{name: item.extra.get(name) for name in names} for item in items]


def columns_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows' columns, in row order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
