"""Verdicts out of replies. A reply that does not say exactly one thing in exactly one place is not a verdict.

A candidate can write verdict lines, JSON or instructions into its answer, and a judge may quote them. So only the last
line counts, a second verdict that differs makes the reply unreadable, and nothing is searched for in running text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from afzal.judge.verdicts import Outcome
from afzal.servers.cache import TOO_LONG

_MARKER = re.compile(r"[ \t]*VERDICT:[ \t]*(\S.*?)[ \t]*")
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
WHOLE = "stop"
_ENDED = {
    "length": "the reply was cut",
    "content_filter": "the server withheld the reply",
    TOO_LONG: "the server's model cannot read so much",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says: an outcome in the order shown, or why there is none; ``score`` for a single answer."""

    outcome: Outcome = "none"
    why: str = ""
    score: float | None = None


def by_choice(reply: str, choices: Mapping[str, Outcome], finish: str = "stop") -> Reading:
    """The last line must be ``VERDICT: word``, and no other verdict line may say something else.

    Args:
        choices: what each word means; upper and lower case are told apart.
        finish: why the reply ended; one that was cut has no last line.
    """
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    lines = _lines(reply)
    if not lines:
        return Reading(why="the reply is empty")
    words = [found[1] for line in lines if (found := _MARKER.fullmatch(line))]
    if not _MARKER.fullmatch(lines[-1]):
        return Reading(why="the last line is not a verdict" if words else "there is no verdict line")
    if unknown := [word for word in words if word not in choices]:
        return Reading(why=f"the verdict {unknown[-1]!r} is not one of {', '.join(choices)}")
    if len({choices[word] for word in words}) > 1:
        return Reading(why="there are two different verdicts")
    return Reading(choices[words[-1]])


def by_json(reply: str, path: str, values: Mapping[str, Outcome], finish: str = "stop") -> Reading:
    """The whole reply must be one JSON object (a code fence around it is allowed) whose field names the outcome.

    A key that occurs twice makes it unreadable: readers of JSON differ in which one they take.
    """
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    fenced = _FENCE.fullmatch(reply)
    try:
        value = json.loads(fenced[1] if fenced else reply, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Reading(why=f"the reply is no JSON object: {str(error) or type(error).__name__}")
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return Reading(why=f"the reply has no field {path!r}")
        value = value[key]
    if not isinstance(value, str) or value not in values:
        return Reading(why=f"the field {path!r} is {value!r}, not one of {', '.join(values)}")
    return Reading(values[value])


def by_score(reply: str, pattern: str, finish: str = "stop") -> Reading:
    """The last line must match the pattern, whose group is a finite number; other lines that match must agree."""
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    lines = _lines(reply)
    if not lines:
        return Reading(why="the reply is empty")
    expression = re.compile(pattern)
    found = [match[1] for line in lines if (match := expression.fullmatch(line.strip()))]
    if not expression.fullmatch(lines[-1].strip()):
        return Reading(why="the last line is not a score" if found else "there is no score line")
    if len(set(found)) > 1:
        return Reading(why="there are two different scores")
    try:
        score = float(found[-1])
    except (TypeError, ValueError):
        return Reading(why=f"the score {found[-1]!r} is not a number")
    return Reading(score=score) if math.isfinite(score) else Reading(why=f"the score is {score}")


def _lines(reply: str) -> list[str]:
    """Lines with anything on them. Only line feeds end a line: other breaks may stand inside a quoted answer."""
    return [line for line in reply.replace("\r\n", "\n").split("\n") if line.strip()]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
