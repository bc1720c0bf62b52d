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

_PEERS = ("prompts", "completions")
"""Parameters of a TRL reward function, which receives lists."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The columns that a function asks for in addition to its usual arguments.

    Attributes:
        needed: parameters without a default.
        optional: parameters with a default, which is used if no row has such a column.
        every: whether it takes ``**columns``: all columns other than prompt and answer.
        lists: whether it is called like a TRL reward function: once for many answers, with lists by name.
        prompts: whether such a function also takes the prompts.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    every: bool = False
    lists: bool = False
    prompts: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The columns asked for by name."""
        return (*self.needed, *self.optional)

    @property
    def any(self) -> bool:
        """Whether the function asks for any column."""
        return self.every or bool(self.names)

    def __or__(self, other: Asked) -> Asked:
        """The columns that either function asks for."""
        needed = tuple(dict.fromkeys((*self.needed, *other.needed)))
        optional = tuple(n for n in dict.fromkeys((*self.optional, *other.optional)) if n not in needed)
        return Asked(needed, optional, self.every or other.every)

    def columns(self, items: Iterable[Item]) -> tuple[str, ...]:
        """The items' columns that are asked for, sorted by name."""
        known = {name for item in items for name in item.extra} if self.any else set()
        return tuple(sorted(known if self.every else known.intersection(self.names)))

    def part(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row that are asked for."""
        return {name: value for name, value in row.items() if self.every or name in self.names}

    def refuse_missing(self, known: Iterable[str], name: str, where: str = "") -> None:
        """Refuse a parameter that no row has a value for.

        Args:
            known: the existing columns.
            name: the function's name.

        Raises:
            AfzalError: a column is missing; names the parameter and the existing columns.
        """
        known = sorted(known)
        lacking = [n for n in self.needed if n not in known]
        if lacking:
            existing = f"their other columns are {', '.join(known)}" if known else "they have no other columns"
            raise AfzalError(
                f"{name} asks for {' and '.join(lacking)}, which no row has",
                where=where,
                why=f"an additional parameter is read from a column of the rows, and {existing}",
                remedy="give the parameter its column's name, give it a default, or add the column to the rows",
            )


def asked_by(fn: Callable[..., Any], own: int = 2) -> Asked:
    """The columns that a function asks for beyond its first ``own`` parameters. A function with a parameter
    ``completions`` is a TRL reward function: it also gets ``prompts`` and ``completions`` by name."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # written in C
        return Asked()
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    lists = own == 2 and any(p.name == "completions" for p in parameters)
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = {p.name for p in by_place[:own]} if not lists else set(_PEERS)
    further = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in taken]
    needed = tuple(p.name for p in further if p.default is p.empty)
    optional = tuple(p.name for p in further if p.default is not p.empty)
    prompts = not lists or every or any(p.name == "prompts" for p in parameters)
    return Asked(needed, optional, every, lists, prompts)


def union_of(asked: Iterable[tuple[str, Asked]]) -> Asked:
    """The columns that several named functions ask for."""
    union = Asked()
    for _, one in asked:
        union = union | one
    return union


def refuse_lacking(asked: Sequence[tuple[str, Asked]], items: Sequence[Item], where: str) -> None:
    """Refuse a parameter of one of these functions if no item has a column for it.

    Args:
        where: the source of the items.

    Raises:
        AfzalError: as for :meth:`Asked.refuse_missing`.
    """
    if any(one.needed for _, one in asked):
        known = {key for item in items for key in item.extra}
        for name, one in asked:
            one.refuse_missing(known, name, where)


def columns_of(items: Sequence[Item], names: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of each item; None if its row lacks the column."""
    return [{name: item.extra.get(name) for name in names} for item in items]


def columns_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows' columns, in row order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
