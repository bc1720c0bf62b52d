"""Checks on request bodies: nothing that a browser or a script sends is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.records import SWAPPED

LONGEST_NOTE = 10_000
LONGEST_NAME = 60
MOST_SECONDS = 7 * 86_400.0
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
OUTCOMES = tuple(SWAPPED)


class RequestError(Exception):
    """A refused request: HTTP status, a short code for scripts, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


def parse_id(body: Mapping[str, Any]) -> str:
    """The id that the client gave its request: 8 to 64 letters, digits, ``_`` and ``-``."""
    ident = body.get("id")
    if not isinstance(ident, str) or not _ID.fullmatch(ident):
        raise RequestError(400, "bad_id", "id must be 8 to 64 letters, digits, _ or -")
    return ident


def parse_name(body: Mapping[str, Any]) -> str:
    """The name under which a person votes: one line of 1 to 60 printable characters."""
    name = body.get("name")
    name = " ".join(name.split()) if isinstance(name, str) else ""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise RequestError(400, "bad_name", f"a name has 1 to {LONGEST_NAME} characters")
    return name


def parse_comparison(body: Mapping[str, Any]) -> dict[str, Any]:
    """``outcome``, and ``strength`` if one response is better (else None)."""
    outcome, strength = body.get("outcome"), body.get("strength", 1)
    if outcome not in OUTCOMES:
        raise RequestError(400, "bad_outcome", f"outcome must be one of {', '.join(OUTCOMES)}")
    if outcome not in ("first", "second"):
        return {"outcome": outcome, "strength": None}
    if type(strength) is not int or strength not in (1, 2):
        raise RequestError(400, "bad_strength", "strength must be 1, or 2 for clearly")
    return {"outcome": outcome, "strength": strength}


def parse_ranking(body: Mapping[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    """``groups``, best first, as response numbers; the body names places on the screen, from 0."""
    groups = body.get("groups")
    if not isinstance(groups, list) or not all(isinstance(g, list) and g for g in groups):
        raise RequestError(400, "bad_groups", "groups must be a list of lists of places, best first")
    places = [place for group in groups for place in group]
    if not all(type(p) is int for p in places) or sorted(places) != list(range(len(shown))):
        raise RequestError(400, "bad_groups", f"groups must name each place from 0 to {len(shown) - 1} once")
    return {"groups": [[shown[place] for place in group] for group in groups]}


def parse_rating(body: Mapping[str, Any], shown: Sequence[int], scale: int) -> dict[str, Any]:
    """``values`` from 1 to ``scale``, larger is better, in the order of the screen."""
    values = body.get("values")
    if not isinstance(values, list) or len(values) != len(shown):
        raise RequestError(400, "bad_values", f"values must hold {len(shown)} numbers, in the order shown")
    if not all(type(v) is int and 1 <= v <= scale for v in values):
        raise RequestError(400, "bad_values", f"a rating is a whole number from 1 to {scale}")
    return {"values": values}


def parse_note(body: Mapping[str, Any]) -> dict[str, Any]:
    """Note and flag."""
    note, flag = body.get("note", ""), body.get("flag", False)
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        raise RequestError(400, "bad_note", f"a note is text of at most {LONGEST_NOTE} characters")
    if not isinstance(flag, bool):
        raise RequestError(400, "bad_flag", "flag must be true or false")
    return {"note": note.encode("utf-8", "replace").decode(), "flag": flag}


def parse_timing(body: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of work, idle seconds, and the seconds heard of each sound in the order shown; None if not sent."""
    heard = body.get("heard")
    if heard is not None and not (isinstance(heard, list) and len(heard) <= 9 and all(map(_is_seconds, heard))):
        raise RequestError(400, "bad_heard", "heard must be a list of seconds")
    timing: dict[str, Any] = {"seconds": None, "idle": 0.0, "heard": heard}
    for key in ("seconds", "idle"):
        value = body.get(key, timing[key])
        if value is not None and not _is_seconds(value):
            raise RequestError(400, f"bad_{key}", f"{key} must be a number from 0 to {MOST_SECONDS:g}")
        timing[key] = value
    return timing


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= MOST_SECONDS
