"""Afzal's own rows: an :class:`Item` as JSON and back, without loss."""

from __future__ import annotations

from dataclasses import MISSING, fields
from math import isfinite
from typing import Any, get_args

from afzal.data.fields import Row, RowError, array, has, kind, mapping, optional_text, value
from afzal.data.turns import messages
from afzal.records import (
    Comparison,
    Item,
    Outcome,
    Ranking,
    Rating,
    RatingKind,
    Response,
    Turns,
    Vote,
    turns_to_row,
)

VERSION = 1
_KINDS = {"comparison": Comparison, "rating": Rating, "ranking": Ranking}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_row(item: Item) -> dict[str, Any]:
    """The item as JSON values; default values are left out."""
    row: dict[str, Any] = {"afzal": VERSION, "id": item.id, "prompt": turns_to_row(item.prompt)}
    row["responses"] = [
        {"turns": turns_to_row(r.turns)} | ({"source": r.source} if r.source is not None else {})
        for r in item.responses
    ]
    for name in ("votes", "gold"):
        if votes := getattr(item, name):
            row[name] = [_vote_to_row(vote) for vote in votes]
    return row | {k: v for k in ("where", "group", "extra") if (v := getattr(item, k))}


def from_row(row: Row) -> Item:
    """The item of a row written by :func:`to_row`."""
    version = value(row, "afzal")
    if version is True or version != VERSION:
        raise RowError("bad_value", "afzal", f"is {version!r}: this version reads rows marked {VERSION}")
    responses = tuple(_response(entry) for entry in array(row, "responses"))
    votes, gold = (
        tuple(_vote(entry, name, len(responses)) for entry in (array(row, name) if has(row, name) else []))
        for name in ("votes", "gold")
    )
    return Item(
        id=optional_text(row, "id"),
        prompt=_turns(value(row, "prompt"), "prompt"),
        responses=responses,
        votes=votes,
        where=optional_text(row, "where"),
        group=optional_text(row, "group"),
        extra=mapping(row, "extra") if has(row, "extra") else {},
        gold=gold,
    )


def _vote_to_row(vote: Vote) -> dict[str, Any]:
    row: dict[str, Any] = {"vote": _NAMES[type(vote)]}
    for field in fields(vote):
        raw = getattr(vote, field.name)
        if field.default is MISSING or raw != field.default:
            row[field.name] = raw
    return row


def _vote(entry: Any, where: str, size: int) -> Vote:
    vote_class = _KINDS.get(str(entry.get("vote"))) if isinstance(entry, dict) else None
    if vote_class is None:
        raise RowError("bad_value", where, "holds something other than comparisons, ratings and rankings")
    values = {k: v for k, v in entry.items() if k != "vote"}
    allowed = {field.name for field in fields(vote_class)}
    needed = {field.name for field in fields(vote_class) if field.default is MISSING}
    if not needed <= values.keys() <= allowed:
        wrong_fields = sorted(needed - values.keys()) or sorted(values.keys() - allowed)
        raise RowError("bad_value", where, f"holds a vote with missing or unknown fields: {', '.join(wrong_fields)}")
    for name, raw in values.items():
        if not _fits(name, raw, size):
            raise RowError("bad_value", where, f"holds a vote whose '{name}' is {raw!r}")
    return _ranking(values, where) if vote_class is Ranking else vote_class(**values)


def _ranking(values: dict[str, Any], where: str) -> Ranking:
    groups = tuple(tuple(group) for group in values["groups"])
    named = sorted(k for group in groups for k in group)
    shown = None if values.get("shown") is None else tuple(values["shown"])
    if len(set(named)) < max(2, len(named)) or (shown is not None and sorted(shown) != named):
        raise RowError("bad_value", where, "holds a ranking that does not name two or more responses, each once")
    return Ranking(**values | {"groups": groups, "shown": shown})


def _fits(name: str, raw: Any, size: int) -> bool:
    """Whether a vote's field may have this value, in an item of ``size`` responses."""
    number = isinstance(raw, int | float) and not isinstance(raw, bool) and isfinite(raw)
    match name:
        case "first" | "second" | "response":
            return number and isinstance(raw, int) and 0 <= raw < size
        case "shown_first":
            return raw is None or (number and isinstance(raw, int) and 0 <= raw < size)
        case "outcome":
            return raw in get_args(Outcome)
        case "kind":
            return raw in get_args(RatingKind)
        case "annotator" | "axis" | "id" | "at":
            return raw is None or isinstance(raw, str)
        case "groups":
            return isinstance(raw, list) and all(bool(group) and _are_responses(group, size) for group in raw)
        case "shown":
            return raw is None or _are_responses(raw, size)
        case "probability":
            return raw is None or (number and 0 <= raw <= 1)
        case "weight":
            return number and raw >= 0
        case "value":
            return number
        case _:
            return raw is None or number


def _are_responses(raw: Any, size: int) -> bool:
    return isinstance(raw, list) and all(type(k) is int and 0 <= k < size for k in raw)


def _response(entry: Any) -> Response:
    if not isinstance(entry, dict):
        raise RowError("wrong_type", "responses", f"holds {kind(entry)} where an object with 'turns' belongs")
    return Response(_turns(value(entry, "turns"), "responses"), optional_text(entry, "source") or None)


def _turns(raw: Any, field: str) -> Turns:
    return raw if isinstance(raw, str) else messages(raw, field)
