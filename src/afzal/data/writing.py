"""Write items in TRL's layouts, OpenAI's preference format, vote files of other tools, and Afzal's format."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from afzal.data.grouping import group_by_content
from afzal.data.judged_by import JUDGED_BY, judges_of
from afzal.data.native import to_row
from afzal.data.remap import with_media
from afzal.data.writing_votes import left_out, vote_rows
from afzal.drops import Drop
from afzal.errors import AfzalError, writing
from afzal.media import named_from
from afzal.records import (
    Comparison,
    Item,
    Preference,
    Rating,
    Turns,
    Vote,
    labels,
    media_of,
    preferences,
    template_fields,
    turns_to_row,
)

Target = Literal["trl", "conversational", "openai", "afzal", "alpaca_eval", "fastchat"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of writing: the rows, the drops that no row can hold, and counts of facts that the rows leave out."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Drop] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _CannotHold:
    """A pair, label or answer that the target cannot hold."""

    reason: str
    detail: str


def plan(items: Iterable[Item], target: Target) -> Plan:
    """Items as rows of the target: one row per ordered pair, labelled response, plain answer or vote."""
    if target not in get_args(Target):
        raise ValueError(f"unknown target {target!r}; known: {', '.join(get_args(Target))}")
    result = Plan()
    for item in items:
        if target == "afzal":
            result.rows.append(to_row(item))
            continue
        if target == "alpaca_eval" or target == "fastchat":
            result.left_out.update(left_out(item, target))
        else:
            result.left_out.update(_left_out(item, target))
        for row in _rows(item, target):
            if isinstance(row, _CannotHold):
                result.skipped.append(Drop(item.where, item.id, row.reason, row.detail, "response"))
            else:
                result.rows.append(row)
    return result


def write(items: Sequence[Item], path: str | Path, format: Target, *, skip_unholdable: bool = False) -> int:
    """Write items as JSON lines (gzip when the name ends in .gz) and return the number of rows.

    Media inside the file's folder are named relative to it, others as their rows named them.

    Raises:
        AfzalError: the format cannot hold something (a tie, a dialogue in a text format) and ``skip_unholdable`` is
            off, or nothing is left to write.
    """
    folder = Path(path).expanduser().resolve().parent
    renamed_items = [with_media(x, lambda media: named_from(media, folder)) if media_of(x) else x for x in items]
    planned = plan(renamed_items, format)
    if planned.skipped and not skip_unholdable:
        raise _refusal(planned.skipped, format)
    if not planned.rows:
        raise AfzalError(
            f"nothing to write as {format}",
            why="no item has a pair, label or answer that this format can hold",
            remedy="--to afzal can hold every item",
        )
    return write_rows(
        planned.rows, path, "list" if format == "alpaca_eval" and Path(path).suffix == ".json" else "lines"
    )


def write_rows(rows: Sequence[dict[str, Any]], path: str | Path, layout: Literal["lines", "list"] = "lines") -> int:
    """Write rows as JSON lines or as one JSON list, to a temporary file that is then moved into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with gzip.open(temporary, "wb") if path.suffix == ".gz" else temporary.open("wb") as stream:
                separator, end = (b"[\n", b"\n]\n") if layout == "list" else (b"", b"\n" if rows else b"")
                for row in rows:
                    stream.write(separator + json.dumps(row, ensure_ascii=False, allow_nan=False).encode())
                    separator = b",\n" if layout == "list" else b"\n"
                stream.write(end)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(rows)


def _rows(item: Item, target: Target) -> Iterator[dict[str, Any] | _CannotHold]:
    if target == "alpaca_eval" or target == "fastchat":
        yield from (_CannotHold(*row) if isinstance(row, tuple) else row for row in vote_rows(item, target))
    elif unfit := _unfit(item, target):
        yield unfit
    elif any(isinstance(vote, Rating) and vote.kind == "label" for vote in item.votes):
        yield from _label_rows(item, target)
    elif len(item.responses) == 1 and not item.votes:
        yield from _answer_rows(item, target)
    else:
        yield from _pair_rows(item, target)


def _unfit(item: Item, target: Target) -> _CannotHold | None:
    if target == "trl" and item.is_chat:
        return _CannotHold("dialogue", "plain texts cannot hold messages; write it as conversational")
    if target != "trl" and not item.is_chat:
        return _CannotHold("plain_text", "a text to be continued is not a dialogue; write it as trl")
    return None


def _pair_rows(item: Item, target: Target) -> Iterator[dict[str, Any] | _CannotHold]:
    both_bad = sum(isinstance(v, Comparison) and v.p_first is None for v in item.votes)
    for _ in range(both_bad):
        yield _CannotHold("both_bad", "two bad answers have no order")
    pairs = preferences(item)
    if not pairs and not both_bad:
        yield _CannotHold("no_preference", "no vote orders the answers")
    for pair in pairs:
        if pair.p == 0.5:
            yield _CannotHold("tie", "a tie has no chosen and rejected answer")
            continue
        chosen, rejected = item.responses[pair.i].turns, item.responses[pair.j].turns
        if target == "openai":
            yield _openai_row(item, chosen, rejected, pair)
        else:
            row = {"prompt": item.prompt, "chosen": chosen, "rejected": rejected}
            yield {k: turns_to_row(v) for k, v in row.items()} | _facts(pair) | _verdict_on_pair(item) | _template(item)


def _openai_row(item: Item, chosen: Turns, rejected: Turns, pair: Preference) -> dict[str, Any] | _CannotHold:
    if pair.p != 1.0 or pair.weight != 1.0:
        return _CannotHold("soft_label", "it cannot hold probabilities and weights")
    if any(not isinstance(t, str) and any(m.role == "user" for m in t) for t in (chosen, rejected)):
        return _CannotHold("user_turn_in_response", "preferred_output can hold only answers, no user turns")
    tools = item.extra.get("tools")
    return {
        "input": {"messages": turns_to_row(item.prompt)} | ({"tools": tools} if tools else {}),
        "preferred_output": turns_to_row(chosen),
        "non_preferred_output": turns_to_row(rejected),
    }


def _label_rows(item: Item, target: Target) -> Iterator[dict[str, Any] | _CannotHold]:
    if target == "openai":
        yield _CannotHold("unpaired", "it cannot hold labels of single answers")
        return
    for k, label in enumerate(labels(item)):
        if label is None:
            yield _CannotHold("no_label", "nothing says whether the answer is good or bad")
            continue
        row = {
            "prompt": turns_to_row(item.prompt),
            "completion": turns_to_row(item.responses[k].turns),
            "label": label,
        }
        votes = _labels_of(item, k)
        weight = fmean(vote.weight for vote in votes) if votes else 1.0
        judge = _only_judges(item, votes)
        yield row | ({"weight": weight} if weight != 1.0 else {}) | ({JUDGED_BY: [judge]} if judge else {})


def _answer_rows(item: Item, target: Target) -> Iterator[dict[str, Any] | _CannotHold]:
    if target == "openai":
        yield _CannotHold("no_preference", "it cannot hold single answers")
        return
    completion = turns_to_row(item.responses[0].turns)
    if item.prompt == "":
        yield {"text": completion}
    else:
        yield {"prompt": turns_to_row(item.prompt), "completion": completion} | _template(item)


def _facts(pair: Preference) -> dict[str, float]:
    """The pair's non-default facts, under the names that the reader understands."""
    facts = {"p_chosen": (pair.p, 1.0), "weight": (pair.weight, 1.0), "margin": (pair.margin, None)}
    return {name: value for name, (value, default) in facts.items() if value != default and value is not None}


def _labels_of(item: Item, response: int) -> list[Rating]:
    """The labels that count for a response."""
    given = [v for v in item.votes if isinstance(v, Rating) and v.kind == "label" and v.response == response]
    return [vote for vote in given if vote.weight > 0]


def _only_judges(item: Item, votes: Iterable[Vote]) -> str:
    """The names of the judges who gave all votes that count, in one; empty if anyone else did."""
    names = {vote.annotator for vote in votes if vote.weight > 0}
    if not names <= set(judges_of(item)):
        return ""
    return " and ".join(sorted(map(str, names)))


def _verdict_on_pair(item: Item) -> dict[str, Any]:
    """The columns that mark a pair as a judge's verdict, if only judges voted: else it would count as a person's."""
    name = _only_judges(item, item.votes)
    return {"annotator": name, JUDGED_BY: [name]} if name else {}


def _without_name(item: Item, target: Target) -> list[Vote]:
    """The votes in rows that do not say which judge gave them."""
    if target == "openai":  # no tool is known to accept further columns there
        return list(item.votes)
    if any(isinstance(vote, Rating) and vote.kind == "label" for vote in item.votes):
        by_row = [_labels_of(item, k) for k in range(len(item.responses))]
    else:
        by_row = [list(item.votes)]
    named = [vote for votes in by_row if _only_judges(item, votes) for vote in votes]
    return [vote for vote in item.votes if vote not in named or vote.annotator not in judges_of(item)]


def _template(item: Item) -> dict[str, Any]:
    return template_fields(item)


def _left_out(item: Item, target: Target) -> Iterator[str]:
    kept = ("tools",) if target == "openai" else template_fields(item)
    nameless = _without_name(item, target)
    checks: dict[str, Callable[[], bool]] = {
        "the names of annotators": lambda: any(v.annotator for v in nameless),
        "single votes (pooled into one probability)": lambda: len(item.votes) > len(item.responses) > 1,
        "that answers belong to one prompt (written as pairs)": lambda: len(item.responses) > 2,
        "which axis a vote is on": lambda: any(v.axis for v in item.votes),
        "which votes are verdicts of judges": lambda: any(v.annotator in judges_of(item) for v in nameless),
        "names of models": lambda: any(r.source is not None for r in item.responses),
        "times of votes, and how long they took": lambda: any(
            v.at is not None or v.seconds is not None for v in item.votes
        ),
        "ids of votes": lambda: any(v.id for v in item.votes),
        "known truths": lambda: bool(item.gold),
        "groups that stay on one side of a split": lambda: item.group not in ("", group_by_content(item)),
        "other columns": lambda: bool(item.extra.keys() - {JUDGED_BY, *kept}),
    }
    yield from (name for name, holds in checks.items() if holds())


def _refusal(skipped: list[Drop], target: str) -> AfzalError:
    counts = Counter(drop.reason for drop in skipped)
    return AfzalError(
        f"{target} cannot hold {sum(counts.values())} of the entries: {skipped[0].detail}",
        where=skipped[0].where,
        why=", ".join(f"{reason} {n}" for reason, n in counts.most_common()),
        remedy="pass --skip to leave them out and count them, or write --to afzal, which can hold everything",
    )
