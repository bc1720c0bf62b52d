"""Afzal's own rows: an :class:`Item` as JSON and back, without loss."""

from __future__ import annotations

from dataclasses import MISSING, fields
from math import isfinite
from typing import Any, get_args

from afzal.data.fields import Row, RowError, array, has, kind, mapping, optional_text, value
from afzal.data.turns import messages
from afzal.records import Comparison, Item, Outcome, Rating, RatingKind, Response, Turns, Vote, turns_to_json

VERSION = 1
_KINDS = {"comparison": Comparison, "rating": Rating}


def to_row(item: Item) -> dict[str, Any]:
    """The item as JSON values; what is at its default is left out."""
    row: dict[str, Any] = {"afzal": VERSION, "id": item.id, "prompt": turns_to_json(item.prompt)}
    row["responses"] = [
        {"turns": turns_to_json(r.turns)} | ({"source": r.source} if r.source is not None else {})
        for r in item.responses
    ]
    if item.votes:
        row["votes"] = [_vote_to_row(vote) for vote in item.votes]
    return row | {k: v for k in ("where", "group", "extra") if (v := getattr(item, k))}


def from_row(row: Row) -> Item:
    """The item of a row written by :func:`to_row`."""
    version = value(row, "afzal")
    if version is True or version != VERSION:
        raise RowError("bad_value", "afzal", f"is {version!r}: this version reads rows marked {VERSION}")
    responses = tuple(_response(entry) for entry in array(row, "responses"))
    votes = tuple(_vote(entry, len(responses)) for entry in (array(row, "votes") if has(row, "votes") else []))
    return Item(
        id=optional_text(row, "id"),
        prompt=_turns(value(row, "prompt"), "prompt"),
        responses=responses,
        votes=votes,
        where=optional_text(row, "where"),
        group=optional_text(row, "group"),
        extra=mapping(row, "extra") if has(row, "extra") else {},
    )


def _vote_to_row(vote: Vote) -> dict[str, Any]:
    row: dict[str, Any] = {"vote": "comparison" if isinstance(vote, Comparison) else "rating"}
    for field in fields(vote):
        got = getattr(vote, field.name)
        if field.default is MISSING or got != field.default:
            row[field.name] = got
    return row


def _vote(entry: Any, size: int) -> Vote:
    made = _KINDS.get(str(entry.get("vote"))) if isinstance(entry, dict) else None
    if made is None:
        raise RowError("bad_value", "votes", "holds something other than comparisons and ratings")
    given = {k: v for k, v in entry.items() if k != "vote"}
    known = {field.name for field in fields(made)}
    needed = {field.name for field in fields(made) if field.default is MISSING}
    if not needed <= given.keys() <= known:
        odd = sorted(needed - given.keys()) or sorted(given.keys() - known)
        raise RowError("bad_value", "votes", f"holds a vote with missing or unknown fields: {', '.join(odd)}")
    for name, got in given.items():
        if not _fits(name, got, size):
            raise RowError("bad_value", "votes", f"holds a vote whose '{name}' is {got!r}")
    return made(**given)


def _fits(name: str, got: Any, size: int) -> bool:
    """Whether a vote's field may have this value, in an item of ``size`` responses."""
    number = isinstance(got, int | float) and not isinstance(got, bool) and isfinite(got)
    match name:
        case "first" | "second" | "response":
            return number and isinstance(got, int) and 0 <= got < size
        case "shown_first":
            return got is None or (number and isinstance(got, int) and 0 <= got < size)
        case "outcome":
            return got in get_args(Outcome)
        case "kind":
            return got in get_args(RatingKind)
        case "annotator" | "axis":
            return got is None or isinstance(got, str)
        case "probability":
            return got is None or (number and 0 <= got <= 1)
        case "weight":
            return number and got >= 0
        case "value":
            return number
        case _:
            return got is None or number


def _response(entry: Any) -> Response:
    if not isinstance(entry, dict):
        raise RowError("wrong_type", "responses", f"holds {kind(entry)} where an object with 'turns' belongs")
    return Response(_turns(value(entry, "turns"), "responses"), optional_text(entry, "source") or None)


def _turns(raw: Any, field: str) -> Turns:
    return raw if isinstance(raw, str) else messages(raw, field)
