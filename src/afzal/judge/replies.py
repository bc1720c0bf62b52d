"""Verdicts read from replies. A reply must give exactly one verdict in exactly one place, or it counts as unreadable.

A candidate can write verdict lines, JSON or instructions into its answer, and a judge may quote them. So only the last
line counts, a second, different verdict makes the reply unreadable, and running text is never searched. Formatting has
no effect: bold type, headings, backticks, brackets, full stops and case are ignored. Quotation marks (``>``) are kept,
since quoted text is not the judge's own.
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

_MARKER = re.compile(r"VERDICT[:：][ \t]*(\S.*)", re.IGNORECASE)
_BOLD = re.compile(r"[*`]+|__")
_HEADING = re.compile(r"#+[ \t]+")
_LONGEST = 40  # characters of the judge's text in a reason
_AROUND = " \t.\"'[]()"
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
WHOLE = "stop"
_ENDED = {
    "length": "the reply was cut at max_tokens",
    "content_filter": "the server withheld the reply",
    TOO_LONG: "the request is too long for the server's model",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says: an outcome in the order shown, or why there is none; ``score`` for a single answer."""

    outcome: Outcome = "none"
    why: str = ""
    score: float | None = None


def by_choice(reply: str, choices: Mapping[str, Outcome], finish: str = "stop") -> Reading:
    """Read a verdict: the last line must be ``VERDICT: word``, and no other verdict line may differ.

    Args:
        choices: the outcome of each word; case matters only for words that differ in nothing else.
        finish: why the reply ended; a truncated reply has no last line.
    """
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    lines = [line for line in _lines(reply) if _plain(line)]  # the end of a fence does not count as a line
    if not lines:
        return Reading(why="the reply is empty")
    marked = [_after_marker(line) for line in lines]
    chosen = [_chosen(words, choices) for words in marked]
    if marked[-1] is None:
        why = (
            "the last line is not a verdict" if any(word is not None for word in chosen) else "there is no verdict line"
        )
        return Reading(why=why)
    # prose may begin with "Verdict: a close call"; in capitals it is the requested line with an unknown word
    unknown = [
        w for line, w, word in zip(lines, marked, chosen, strict=True) if w and word is None and "VERDICT" in line
    ]
    if chosen[-1] is None or unknown:
        word = (unknown or marked)[-1] or ""
        return Reading(why=f"the verdict {word[:_LONGEST]!r} is not one of {', '.join(choices)}")
    if len({choices[word] for word in chosen if word is not None}) > 1:
        return Reading(why="there are two different verdicts")
    return Reading(choices[chosen[-1]])


def _after_marker(line: str) -> str | None:
    """The text after ``VERDICT:`` if the line starts with it, else None."""
    match = _MARKER.fullmatch(_plain(line))
    return match[1] if match else None


def _chosen(words: str | None, choices: Mapping[str, Outcome]) -> str | None:
    """The choice that the words name; None if they name none."""
    if words is None:
        return None
    stripped = words.strip(_AROUND)
    for word in (words, stripped):
        if word in choices:
            return word
    matches = [word for word in choices if word.casefold() == stripped.casefold()]
    return matches[0] if len(matches) == 1 else None


def _plain(line: str) -> str:
    """A line without Markdown emphasis, heading marks and surrounding blanks."""
    return _HEADING.sub("", _BOLD.sub("", line).strip(" \t"), count=1).strip(" \t")


def by_json(reply: str, path: str, values: Mapping[str, Outcome], finish: str = "stop") -> Reading:
    """Read a verdict: the complete reply must be one JSON object (a code fence is allowed) whose field names the
    outcome.

    A duplicate key makes it unreadable, since JSON parsers differ in which one they keep.
    """
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    fenced = _FENCE.fullmatch(reply)
    try:
        value = json.loads(fenced[1] if fenced else reply, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Reading(why=f"the reply is not a JSON object: {str(error) or type(error).__name__}")
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return Reading(why=f"the reply has no field {path!r}")
        value = value[key]
    if not isinstance(value, str) or value not in values:
        return Reading(why=f"the field {path!r} is {value!r}, not one of {', '.join(values)}")
    return Reading(values[value])


def by_score(reply: str, pattern: str, finish: str = "stop") -> Reading:
    """Read a score: the last line must match the pattern, whose group is a finite number; other matches must agree."""
    if finish != WHOLE:
        return Reading(why=_ENDED.get(finish, f"the reply ended by {finish}"))
    lines = _lines(reply)
    if not lines:
        return Reading(why="the reply is empty")
    expression = re.compile(pattern)
    matches = [expression.fullmatch(line.strip()) or expression.fullmatch(_plain(line)) for line in lines]
    written = [match[1] for match in matches if match]
    if not matches[-1]:
        return Reading(why="the last line is not a score" if written else "there is no score line")
    if len(set(written)) > 1:
        return Reading(why="there are two different scores")
    try:
        score = float(written[-1])
    except (TypeError, ValueError):
        return Reading(why=f"the score {written[-1]!r} is not a number")
    return Reading(score=score) if math.isfinite(score) else Reading(why=f"the score is {score}")


def _lines(reply: str) -> list[str]:
    """The lines that are not blank. Only line feeds end a line; other breaks may occur inside a quoted answer."""
    return [line for line in reply.replace("\r\n", "\n").split("\n") if line.strip()]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
