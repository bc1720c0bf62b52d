"""Parse Label Studio's nested export, JSON: one row per task, with every annotation and every tag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from afzal.data.fields import Row, RowError, UnusableError, array, has, mapping, optional_number, text
from afzal.data.format import Format
from afzal.data.parse_tools import PROMPTS, pair_in, placed, row_id, with_others
from afzal.data.turns import assistant_turn, chat_prompt
from afzal.data.vote_values import read_vote
from afzal.records import Comparison, Item, Outcome, Ranking, Response, Turns, Vote

SIDES: dict[str, Outcome] = {"left": "first", "right": "second"}


def label_studio(row: Row, voting: Sequence[str] | None = None) -> Item | Iterator[Item | UnusableError]:
    """``data`` with a prompt and two answers or a list of items; every annotation is one vote per tag.

    ``left`` means the first answer. A Ranker's list is a ranking. An annotation marked ``ground_truth`` becomes a gold
    vote; one that was cancelled is no vote, and is counted as such. If there are several tags, their names are axes.

    Args:
        voting: the tags whose answers are votes; each must state one. None for all tags, of which those that state no
            vote are passed over if another one does.
    """
    data = mapping(row, "data")
    names, turns = _answers(data)
    votes: list[tuple[str, Vote]] = []
    gold: list[tuple[str, Vote]] = []
    lost: list[UnusableError] = []
    for entry in array(row, "annotations|completions"):
        if isinstance(entry, dict) and entry.get("was_cancelled"):
            lost.append(UnusableError("cancelled", f"annotation {entry.get('id', '')} was cancelled"))
        elif isinstance(entry, dict):
            (gold if entry.get("ground_truth") else votes).extend(_votes(entry, data, names, voting))
    item = Item(
        row_id(row),
        chat_prompt(text(data, PROMPTS)),
        tuple(map(Response, turns)),
        placed(votes, voting),
        gold=placed(gold, voting),
    )
    return with_others(item, lost, "no annotation says which answer is better")


def settled(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for the tags of this source: a Pairwise or Ranker tag states votes, and so does a Choices tag if
    nearly all of its answers in the first rows name a side. Other tags are counted and named."""
    answers_by_tag: dict[str, Counter[bool]] = {}
    for row in sample:
        for tag, states_vote in _tags_of(row):
            answers_by_tag.setdefault(tag, Counter())[states_vote] += 1
    voting = [tag for tag, answers in answers_by_tag.items() if answers[True] > 4 * answers[False]]
    if not voting:
        return entry
    reads = dict(entry.reads)
    if len(voting) > 1:
        reads["votes"] = f"annotations of {' and '.join(voting)}, each an axis (left: A better)"
    if others := {tag: answers.total() for tag, answers in answers_by_tag.items() if tag not in voting}:
        counted = ", ".join(f"{tag} {n}" for tag, n in others.items())
        reads["tags that are not votes, with their answers in the first rows"] = counted
    return replace(entry, reads=reads, parse=lambda row: label_studio(row, voting))


def list_items(items: Sequence[Any]) -> tuple[list[str], list[Turns]]:
    """The names and the texts of the entries of Label Studio's List."""
    names, turns = [], []
    for k, item in enumerate(items):
        if isinstance(item, Mapping):
            names.append(str(item.get("id", k)))
            turns.append(assistant_turn(text(item, "body|text|html|content|title")))
        else:
            names.append(str(item))
            turns.append(assistant_turn(str(item)))
    return names, turns


def ranked(ranker: Any, names: Sequence[str]) -> list[int]:
    """The responses of a Ranker's result, best first; several buckets have no order (``_`` holds the unsorted ones)."""
    if isinstance(ranker, Mapping):
        filled = {name: ids for name, ids in ranker.items() if name != "_" and ids}
        if len(filled) > 1:
            raise UnusableError("buckets", f"the buckets {', '.join(map(str, filled))} have no order")
        ranker = next(iter(filled.values()), ranker.get("_", []))
    place_of = {name: k for k, name in enumerate(names)}
    places = [place_of.get(str(name)) for name in ranker] if isinstance(ranker, list | tuple) else []
    if None in places or len(set(places)) != len(places) or len(places) < 2:
        raise RowError("bad_value", "ranker", "does not name two or more of the items, each once")
    return [k for k in places if k is not None]


def _answers(data: Row) -> tuple[list[str], list[Turns]]:
    if has(data, "items"):
        return list_items(array(data, "items"))
    pair = pair_in(data)
    return [pair.a, pair.b], [assistant_turn(text(data, field)) for field in (pair.a, pair.b)]


def _votes(entry: Row, data: Row, names: Sequence[str], voting: Sequence[str] | None) -> Iterator[tuple[str, Vote]]:
    """(tag, vote) for every tag of an annotation that states one."""
    annotator = entry.get("completed_by")
    annotator = annotator.get("email", annotator.get("id")) if isinstance(annotator, dict) else annotator
    facts: dict[str, Any] = {
        "annotator": None if annotator is None else str(annotator),
        "seconds": optional_number(entry, "lead_time"),
        "id": str(entry["id"]) if has(entry, "id") else None,
        "at": str(entry["created_at"]) if has(entry, "created_at") else None,
    }
    votes, faults = {}, []
    for tag, answer in _results(entry):
        if voting is not None and tag not in voting:
            continue
        try:
            vote = _vote(tag, answer, data, names, facts)
        except RowError as fault:
            if voting is not None:
                raise
            faults.append(fault)
            continue
        if vote is not None and tag in votes:
            raise RowError("bad_value", tag, "holds several answers of one annotation")
        if vote is not None:
            votes[tag] = vote
    if faults and not votes:
        raise faults[0]
    yield from votes.items()


def _results(entry: Row) -> Iterator[tuple[str, Row]]:
    """(tag, answer) for every result of an annotation."""
    for result in array(entry, "result") if has(entry, "result") else []:
        if isinstance(result, dict) and isinstance(answer := result.get("value"), dict):
            yield str(result.get("from_name") or result.get("type") or ""), answer


def _vote(tag: str, answer: Row, data: Row, names: Sequence[str], facts: Mapping[str, Any]) -> Vote | None:
    """The vote that an answer states; None for answers of another kind."""
    if "ranker" in answer:
        return Ranking(tuple((k,) for k in ranked(answer["ranker"], names)), **facts)
    if answer.get("selected") in SIDES:
        return Comparison(0, 1, SIDES[answer["selected"]], **facts)
    chosen = answer.get("choices")
    if not isinstance(chosen, list) or not chosen or has(data, "items"):
        return None
    if len(chosen) > 1:
        raise RowError("bad_value", tag, f"holds {len(chosen)} choices")
    outcome, strength = read_vote(chosen[0], pair_in(data), data, tag)
    return Comparison(0, 1, outcome, strength, **facts)


def _tags_of(row: Row) -> Iterator[tuple[str, bool]]:
    """(tag, whether it states a vote) for every answer in a row; none for a damaged row."""
    try:
        data = mapping(row, "data")
        names, _ = _answers(data)
        entries = array(row, "annotations|completions")
    except RowError:
        return
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("result"), list):
            for tag, answer in _results(entry):
                yield tag, _states_vote(tag, answer, data, names)


def _states_vote(tag: str, answer: Row, data: Row, names: Sequence[str]) -> bool:
    if "ranker" in answer or answer.get("selected") in SIDES:
        return True
    try:
        return _vote(tag, answer, data, names, {}) is not None
    except (RowError, UnusableError):
        return False
