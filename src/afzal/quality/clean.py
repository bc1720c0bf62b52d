"""Remove items that teach nothing: answers compared with themselves, and duplicate items."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from afzal.data import remap, without
from afzal.data.remap import renumbered_votes
from afzal.data.turns import exact_key, full_text, stripped_key
from afzal.drops import Drop
from afzal.records import Comparison, Item, Ranking, Turns, Vote, template_fields, vote_values


def clean(items: Iterable[Item], columns: Sequence[str] = ()) -> tuple[list[Item], list[Drop]]:
    """Items without empty answers, identical pairs and exact duplicates, in order, and a reason for each drop.

    Reading keeps answers without words if people judged them, but there is nothing to learn from them. Answers that are
    equal except for white space at their ends are merged into one, with the votes of both. An item whose answers are
    all the same is dropped. Of items with the same prompt, answers and votes (in any order of the answers) the first is
    kept. Contradictory pairs are kept: :func:`afzal.quality.contradictions` finds them.

    Args:
        columns: other columns of the rows in which duplicates must agree too.
    """
    cleaned: list[Item] = []
    drops: list[Drop] = []
    first_place: dict[Hashable, str] = {}
    for item in items:
        item, empty = _without_empty(item)
        if empty is not None:
            drops.append(empty)
            if empty.is_complete:
                continue
        merged = merge_identical(item)
        if len(merged.responses) < len(item.responses):
            is_dropped = len(merged.responses) == 1
            drops.append(_identical(item, is_dropped))
            if is_dropped:
                continue
        key = duplicate_key(merged)
        if columns:
            key = (key, json.dumps([item.extra.get(name) for name in columns], sort_keys=True, default=str))
        if key in first_place:
            drops.append(Drop(item.where, item.id, "duplicate_item", f"same as {first_place[key]}"))
            continue
        first_place[key] = item.where or item.id
        cleaned.append(merged)
    return cleaned, drops


def _without_empty(item: Item) -> tuple[Item, Drop | None]:
    """The item without its empty answers, and the drop; if fewer than two answers remain, the item is dropped."""
    if len(item.responses) < 2:
        return item, None
    empty = {k for k, response in enumerate(item.responses) if _is_empty(response.turns)}
    if not empty:
        return item, None
    unit = "item" if len(item.responses) - len(empty) < 2 else "response"
    names = ", ".join(f"response {k}" for k in sorted(empty))
    drop = Drop(item.where, item.id, "empty_response", f"{names} of {len(item.responses)} is empty", unit)
    return (item if drop.is_complete else without(item, empty)), drop


def _is_empty(turns: Turns) -> bool:
    if isinstance(turns, str):
        return not turns.strip()
    return not full_text(turns).strip() and not any(m.reasoning.strip() for m in turns)


def merge_identical(item: Item) -> Item:
    """The item with answers merged that differ only in white space at their ends; the same object if there are none."""
    if len(item.responses) < 2:
        return item
    place: dict[object, int] = {}
    new_index: list[int | None] = [place.setdefault(stripped_key(r.turns), len(place)) for r in item.responses]
    return remap(item, new_index) if len(place) < len(item.responses) else item


def duplicate_key(item: Item) -> Hashable:
    """A key that is equal for items with the same prompt, answers and votes, in any order of the answers.

    Prompts with the same messages differ if their rows pass different values to the chat template.
    """
    answers_by_place = [_sortable(response.turns) for response in item.responses]
    order = sorted(range(len(answers_by_place)), key=answers_by_place.__getitem__)
    votes: Iterable[Vote] = item.votes
    if order != sorted(order):
        place = {old: new for new, old in enumerate(order)}
        votes = renumbered_votes(votes, [place[k] for k in range(len(answers_by_place))])
    values = [vote_values(_upright(vote)) for vote in votes]
    answers = tuple([exact_key(item.responses[k].turns) for k in order])
    stated = json.dumps(template_fields(item), sort_keys=True, default=str) if item.extra else "{}"
    return exact_key(item.prompt), stated, answers, tuple(sorted(values, key=repr) if len(values) > 1 else values)


def _sortable(turns: Turns) -> str:
    return turns.strip() if isinstance(turns, str) else repr(stripped_key(turns))


def _upright(vote: Vote) -> Vote:
    if isinstance(vote, Ranking):
        return replace(vote, groups=tuple(tuple(sorted(group)) for group in vote.groups))
    return vote.swap() if isinstance(vote, Comparison) and vote.first > vote.second else vote


def _identical(item: Item, is_dropped: bool) -> Drop:
    if is_dropped:
        return Drop(item.where, item.id, "identical_pair", "all answers are the same text")
    return Drop(item.where, item.id, "identical_answers", "answers with the same text were merged", "response")
