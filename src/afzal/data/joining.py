"""Join rows of single votes, or of single answers, on the same question into one item."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

from afzal.data.judged_by import naming_all
from afzal.data.remap import renumbered_votes
from afzal.data.turns import exact_key
from afzal.records import Comparison, Item, Vote


def joined(items: Iterable[Item]) -> list[Item]:
    """Join items with the same prompt and answers into one, with all votes and judges, and the first one's place, id
    and other fields.

    If rows have the same two answers in different orders, each row's order is taken as the order shown. Items of one
    answer each are joined by their prompt.
    """
    by_question: dict[tuple[Hashable, frozenset[Hashable]], list[Item]] = {}
    for item in items:
        answers = (
            frozenset(exact_key(response.turns) for response in item.responses)
            if len(item.responses) > 1
            else frozenset()
        )
        by_question.setdefault((exact_key(item.prompt), answers), []).append(item)
    return [group[0] if len(group) == 1 else _as_one(group) for group in by_question.values()]


def join_votes(items: Iterable[Item]) -> list[Item]:
    """Join items with the same prompt and the same two or more answers, if different annotators voted on them.

    Vote files of other tools hold one vote per row. If an annotator has already voted on the joined item, the question
    was asked again as a separate question, and the items stay separate.
    """
    groups: list[list[Item]] = []
    groups_of: dict[tuple[Hashable, frozenset[Hashable]], tuple[list[Item], set[str]]] = {}
    for item in items:
        key = exact_key(item.prompt), frozenset(exact_key(response.turns) for response in item.responses)
        new_annotators = {vote.annotator for vote in item.votes if vote.annotator is not None}
        group, annotators = groups_of.get(key, ([], set()))
        if len(item.responses) > 1 and group and new_annotators and not new_annotators & annotators:
            group.append(item)
            annotators |= new_annotators
        else:
            groups_of[key] = [item], new_annotators
            groups.append(groups_of[key][0])
    return [group[0] if len(group) == 1 else _as_one(group) for group in groups]


def _as_one(group: Sequence[Item]) -> Item:
    first = replace(group[0], extra=naming_all(group))
    if len({exact_key(r.turns) for r in first.responses}) < len(first.responses):
        return replace(first, votes=tuple(v for item in group for v in item.votes))
    responses = {exact_key(r.turns): r for item in reversed(group) for r in reversed(item.responses)}
    keys = dict.fromkeys(exact_key(r.turns) for item in group for r in item.responses)
    place = {key: k for k, key in enumerate(keys)}
    orders = [[place[exact_key(response.turns)] for response in item.responses] for item in group]
    votes = [renumbered_votes(item.votes, order) for item, order in zip(group, orders, strict=True)]
    if len(place) == 2 and {(0, 1), (1, 0)} == set(map(tuple, orders)):
        votes = [[_shown(v, order[0]) for v in group_votes] for group_votes, order in zip(votes, orders, strict=True)]
    gold = [renumbered_votes(item.gold, order) for item, order in zip(group, orders, strict=True)]
    all_votes, all_gold = (tuple(chain.from_iterable(parts)) for parts in (votes, gold))
    return replace(first, responses=tuple(map(responses.__getitem__, place)), votes=all_votes, gold=all_gold)


def _shown(vote: Vote, first: int) -> Vote:
    if not isinstance(vote, Comparison):
        return vote
    upright = vote if vote.first < vote.second else vote.swap()
    return replace(upright, shown_first=first) if vote.shown_first is None else upright
