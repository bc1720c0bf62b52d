"""The other columns of rows that functions of one's own ask for, by the names of their parameters."""

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
"""Parameters of a reward function of TRL, which gets lists."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a function asks for beside what it is always given.

    Attributes:
        needed: parameters without a default.
        optional: parameters with one, which stays where no row has such a column.
        every: whether it takes ``**columns``: each column that is neither prompt nor answer.
        lists: whether it is called as TRL calls reward functions, once for many answers, with lists by name.
        prompts: whether it then takes the prompts too.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    every: bool = False
    lists: bool = False
    prompts: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are asked for by name."""
        return (*self.needed, *self.optional)

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self.every or bool(self.names)

    def __or__(self, other: Asked) -> Asked:
        """What either asks for."""
        needed = tuple(dict.fromkeys((*self.needed, *other.needed)))
        optional = tuple(n for n in dict.fromkeys((*self.optional, *other.optional)) if n not in needed)
        return Asked(needed, optional, self.every or other.every)

    def columns(self, items: Iterable[Item]) -> tuple[str, ...]:
        """Those of the items' columns that are asked for, in alphabetical order."""
        known = {name for item in items for name in item.extra} if self.any else set()
        return tuple(sorted(known if self.every else known.intersection(self.names)))

    def part(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a row's columns that is asked for."""
        return {name: value for name, value in row.items() if self.every or name in self.names}

    def refuse_missing(self, known: Iterable[str], name: str, where: str = "") -> None:
        """Refuse a parameter that no row has a value for.

        Args:
            known: the columns that there are.
            name: of the function.

        Raises:
            AfzalError: names the parameter, and the columns that there are.
        """
        known = sorted(known)
        lacking = [n for n in self.needed if n not in known]
        if lacking:
            there = f"their other columns are {', '.join(known)}" if known else "they have no other columns"
            raise AfzalError(
                f"{name} asks for {' and '.join(lacking)}, which no row has",
                where=where,
                why=f"a parameter beyond the usual ones is a column of the rows, and {there}",
                remedy="name the parameter as its column, give it a default, or add the column to the rows",
            )


def asked_by(fn: Callable[..., Any], own: int = 2) -> Asked:
    """What a function asks for beyond its first ``own`` parameters. One with a parameter ``completions`` is a reward
    function of TRL: it gets ``prompts`` and ``completions`` by name too."""
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
    """What several functions ask for, each given with its name."""
    whole = Asked()
    for _, one in asked:
        whole = whole | one
    return whole


def refuse_lacking(asked: Sequence[tuple[str, Asked]], items: Sequence[Item], where: str) -> None:
    """Refuse a parameter of one of these functions that no item has a column for.

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
    """These columns of each item; None where its row has none."""
    return [{name: item.extra.get(name) for name in names} for item in items]


def columns_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of columns in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
