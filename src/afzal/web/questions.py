"""Questions on the items of a file, with stable keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from afzal.errors import AfzalError
from afzal.records import Item, preferences, turns_to_json

Mode = Literal["pair", "rank", "rate"]
MOST_RANKED = 9


@dataclass(frozen=True, slots=True)
class Question:
    """One question about some responses of an item, on one axis.

    The page knows it by ``key``, which reveals nothing about the item; ``item`` and ``item_id`` stay on the server.
    ``truth`` is the index of the better response of a gold pair; None if it is not known.
    """

    key: str
    item: int
    item_id: str
    responses: tuple[int, ...]
    axis: str | None = None
    is_gold: bool = False
    truth: int | None = None


def content_sha256(item: Item) -> str:
    """The SHA-256 of an item's prompt and responses, without ids, sources and votes."""
    content = [turns_to_json(item.prompt), [turns_to_json(r.turns) for r in item.responses]]
    return hashlib.sha256(_encode(content).encode()).hexdigest()


_encode = json.JSONEncoder(default=str).encode


def with_unique_ids(items: Sequence[Item]) -> list[Item]:
    """The items, with ``#2``, ``#3`` appended to repeated ids."""
    used: set[str] = set()
    counts: dict[str, int] = {}
    unique = []
    for item in items:
        name = item.id
        while name in used:
            counts[item.id] = counts.get(item.id, 1) + 1
            name = f"{item.id}#{counts[item.id]}"
        used.add(name)
        unique.append(item if name == item.id else replace(item, id=name))
    return unique


def default_mode(items: Sequence[Item]) -> Mode:
    """``rank`` if an item has more than two responses, ``pair`` if one has two, else ``rate``."""
    most = max((len(item.responses) for item in items), default=0)
    return "rank" if most > 2 else "pair" if most == 2 else "rate"


def questions_on(
    items: Sequence[Item], hashes: Sequence[str], mode: Mode, axes: Iterable[str | None]
) -> list[Question]:
    """All questions, item by item; items with a known truth give gold questions.

    Raises:
        AfzalError: an item has too few or too many responses for the mode, or a gold item has no preference.
    """
    questions, axes = [], list(axes)
    for number, (item, sha) in enumerate(zip(items, hashes, strict=True)):
        for responses in _groups(item, mode):
            for axis in axes:
                truth = _truth(item, responses) if item.gold and mode == "pair" else None
                key = _key(sha, item.id, responses, axis)
                questions.append(Question(key, number, item.id, responses, axis, bool(item.gold), truth))
    return questions


def _groups(item: Item, mode: Mode) -> list[tuple[int, ...]]:
    """The groups of responses that are shown together."""
    count = len(item.responses)
    if mode == "rate":
        return [tuple(range(count))]
    if count < 2:
        raise AfzalError(
            f"the item has {count} response{'s' * (count != 1)}, and --mode {mode} needs two",
            where=item.where or item.id,
            remedy="use --mode rate, or remove these rows",
        )
    if mode == "pair":
        return list(combinations(range(count), 2))
    if count > MOST_RANKED:
        raise AfzalError(
            f"the item has {count} responses; the digit keys rank at most {MOST_RANKED}",
            where=item.where or item.id,
            remedy="use --mode pair",
        )
    return [tuple(range(count))]


def _truth(item: Item, responses: tuple[int, ...]) -> int:
    for pair in preferences(replace(item, votes=item.gold)):
        if {pair.i, pair.j} == set(responses) and pair.p != 0.5:
            return pair.i if pair.p > 0.5 else pair.j
    raise AfzalError(
        "the gold row does not say which response is better",
        where=item.where or item.id,
        remedy="use only rows with a clear preference in --gold",
    )


def _key(sha: str, ident: str, responses: tuple[int, ...], axis: str | None) -> str:
    return hashlib.sha256(json.dumps([sha, ident, responses, axis]).encode()).hexdigest()[:16]
