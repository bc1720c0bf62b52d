"""Remove, merge or renumber the responses of items, with every vote on them, or replace their media."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from afzal.media import Media, media_part
from afzal.records import Item, Message, Ranking, Rating, Response, Turns, Vote


def remap(item: Item, new_index: Sequence[int | None]) -> Item:
    """The item with response k moved to ``new_index[k]``; None removes it, and an index used twice merges two
    responses.

    The first response of an index is kept. Votes on removed responses are dropped, and so are comparisons of a response
    with itself. A ranking loses removed responses; a response that occurs in it twice is placed at the mean of its
    groups, as pooled comparisons would place it.
    """
    first = {new: old for old, new in reversed(list(enumerate(new_index))) if new is not None}
    responses = tuple(item.responses[first[new]] for new in sorted(first))
    votes, gold = (tuple(renumbered_votes(old_votes, new_index)) for old_votes in (item.votes, item.gold))
    return replace(item, responses=responses, votes=votes, gold=gold)


def renumbered_votes(votes: Iterable[Vote], new_index: Sequence[int | None]) -> list[Vote]:
    """The votes with responses renumbered as in :func:`remap`; votes that no longer say anything are left out."""
    return [renumbered for vote in votes if (renumbered := _renumbered(vote, new_index)) is not None]


def without(item: Item, removed: set[int]) -> Item:
    """The item without the responses at these indices."""
    remaining = [k for k in range(len(item.responses)) if k not in removed]
    place = {old: new for new, old in enumerate(remaining)}
    return remap(item, [place.get(k) for k in range(len(item.responses))])


def with_media(item: Item, change: Callable[[Media], Media]) -> Item:
    """The item with each of its media replaced."""
    answers = tuple(Response(_changed(response.turns, change), response.source) for response in item.responses)
    return replace(item, prompt=_changed(item.prompt, change), responses=answers)


def _changed(turns: Turns, change: Callable[[Media], Media]) -> Turns:
    if isinstance(turns, str):
        return turns
    return tuple(Message(m.role, _changed_content(m.content, change), m.reasoning) for m in turns)


def _changed_content(
    content: str | tuple[Mapping[str, Any], ...], change: Callable[[Media], Media]
) -> str | tuple[Mapping[str, Any], ...]:
    if isinstance(content, str):
        return content
    return tuple(media_part(change(m)) if isinstance(m := part.get("media"), Media) else part for part in content)


def _renumbered(vote: Vote, new_index: Sequence[int | None]) -> Vote | None:
    if isinstance(vote, Rating):
        new = new_index[vote.response]
        return None if new is None else replace(vote, response=new)
    if isinstance(vote, Ranking):
        return _renumbered_ranking(vote, new_index)
    first, second = new_index[vote.first], new_index[vote.second]
    if first is None or second is None or first == second:
        return None
    shown = None if vote.shown_first is None else new_index[vote.shown_first]
    return vote.between(first, second, shown)


def _renumbered_ranking(vote: Ranking, new_index: Sequence[int | None]) -> Ranking | None:
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(vote.groups):
        for k in group:
            if (new := new_index[k]) is not None:
                groups.setdefault(new, []).append(place)
    if len(groups) < 2:
        return None
    mean = {new: sum(places) / len(places) for new, places in groups.items()}
    tied = tuple(tuple(sorted(k for k in mean if mean[k] == place)) for place in sorted(set(mean.values())))
    shown = None
    if vote.shown is not None:
        shown = tuple(dict.fromkeys(new for k in vote.shown if (new := new_index[k]) is not None))
    return replace(vote, groups=tied, shown=shown)
