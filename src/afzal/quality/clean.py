"""Removing what cannot teach: answers compared with themselves, and items said twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from afzal.data import Drop, fingerprint, remap
from afzal.data.turns import stripped
from afzal.records import Comparison, Item, Vote


def clean(items: Iterable[Item]) -> tuple[list[Item], list[Drop]]:
    """Items without identical pairs and without exact duplicates, in order, and a reason for each loss.

    Answers that are equal but for white space at their ends are merged into one, with the votes of both. An item whose
    answers are all the same is dropped. Of items with the same prompt, answers and votes (whatever the order in which
    the answers stand) the first is kept. Contradictory pairs are kept: :func:`afzal.quality.contradictions` finds them.
    """
    kept: list[Item] = []
    drops: list[Drop] = []
    seen: dict[str, str] = {}
    for item in items:
        merged = merge_identical(item)
        if len(merged.responses) < len(item.responses):
            gone = len(merged.responses) == 1
            drops.append(_identical(item, gone))
            if gone:
                continue
        key = duplicate_key(merged)
        if key in seen:
            drops.append(Drop(item.where, item.id, "duplicate_item", f"same as {seen[key]}"))
            continue
        seen[key] = item.where or item.id
        kept.append(merged)
    return kept, drops


def merge_identical(item: Item) -> Item:
    """The item with answers that differ at most in white space at their ends made one; itself when there are none."""
    if len(item.responses) < 2:
        return item
    place: dict[object, int] = {}
    new_index: list[int | None] = [place.setdefault(stripped(r.turns), len(place)) for r in item.responses]
    return remap(item, new_index) if len(place) < len(item.responses) else item


def duplicate_key(item: Item) -> str:
    """Equal for items with the same prompt, answers and votes, whichever answer stands first."""
    order = sorted(range(len(item.responses)), key=lambda k: repr(stripped(item.responses[k].turns)))
    new_index: list[int | None] = [order.index(k) for k in range(len(item.responses))]
    sorted_item = item if new_index == sorted(order) else remap(item, new_index)
    votes = tuple(sorted((_upright(vote) for vote in sorted_item.votes), key=repr))
    return fingerprint([replace(sorted_item, votes=votes)])


def _upright(vote: Vote) -> Vote:
    return vote.swap() if isinstance(vote, Comparison) and vote.first > vote.second else vote


def _identical(item: Item, gone: bool) -> Drop:
    if gone:
        return Drop(item.where, item.id, "identical_pair", "all answers are the same text")
    return Drop(item.where, item.id, "identical_answers", "answers with the same text were made one", "part")
