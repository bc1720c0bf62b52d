"""Read the folder that the annotation page writes: the rows shown, and every vote on them, as Afzal rows.

``items.jsonl`` holds the rows, ``votes.jsonl`` one line per action. Three kinds of votes are not trained on and are
kept with weight 0, for statistics about annotators: repeats of an earlier question, votes on rows of known truth, and
practice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afzal.data.fields import Row
from afzal.data.json_reader import Fault, RawRow, read_lines
from afzal.errors import AfzalError

ITEMS = "items.jsonl"
VOTES = "votes.jsonl"


def is_annotation_folder(source: str | Path) -> bool:
    """Whether a source is a folder that the annotation page wrote."""
    path = Path(source).expanduser()
    return path.is_dir() and (path / ITEMS).is_file() and (path / VOTES).is_file()


@dataclass(slots=True)
class PageVotes:
    """The votes of a page by item, and counts of its lines.

    Attributes:
        votes: each item's votes, as in Afzal rows.
        skips: each item's reasons for skipping it.
        counts: lines by kind: votes (to train on), repeats, gold (votes on rows of known truth), skips, retracted, torn
            (a last line that was cut off); and how many unretracted lines have notes and flags.
    """

    votes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skips: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Notes on the lines."""
        labels = {
            "votes": "votes to train on",
            "repeats": "repeats, kept with weight 0 for self-consistency",
            "gold": "votes on rows of known truth, kept with weight 0 for accuracy",
            "skips": "skips, with reasons in extra.skipped",
            "retracted": "retracted and left out",
            "notes": "with a note",
            "flags": "flagged",
            "torn": "at the end is cut off in the middle and left out",
        }
        return [f"{VOTES}: {self.counts[kind]} {label}" for kind, label in labels.items() if self.counts[kind]]


def annotation_rows(source: str | Path, page_votes: PageVotes) -> Iterator[RawRow]:
    """The rows of a page's folder with their votes, as Afzal rows; fills ``page_votes``.

    Raises:
        AfzalError: a line is not an action of the page, or its item is not among the rows, or has changed since.
    """
    path = Path(source).expanduser()
    rows = list(_lines(path / ITEMS))
    gold = {str(raw.value.get("id")) for raw in rows if isinstance(raw.value, Mapping) and _is_gold(raw.value)}
    items_by_id = {str(raw.value.get("id")): raw.value for raw in rows if isinstance(raw.value, Mapping)}
    actions = list(_lines(path / VOTES))
    if actions and isinstance(actions[-1].value, Fault) and not _ends_with_newline(path / VOTES):
        actions.pop()  # a page killed in the middle of a line had not confirmed the vote
        page_votes.counts["torn"] = 1
    _collect(actions, items_by_id, gold, page_votes)
    for raw in rows:
        if isinstance(raw.value, Mapping):
            yield RawRow(raw.where, _with_votes(raw.value, page_votes))
        else:
            yield raw


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as stream:
        yield from read_lines(stream, str(path))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


def _is_gold(row: Row) -> bool:
    extra = row.get("extra")
    return bool(row.get("gold")) or (isinstance(extra, Mapping) and extra.get("gold") is True)


def _with_votes(row: Row, page_votes: PageVotes) -> dict[str, Any]:
    ident, full = str(row.get("id")), dict(row)
    if _is_gold(row) and "gold" not in row:
        full["gold"] = full.pop("votes", [])
    full["votes"] = [*full.get("votes", ()), *page_votes.votes.get(ident, ())]
    if ident in page_votes.skips:
        full["extra"] = {**full.get("extra", {}), "skipped": page_votes.skips[ident]}
    return full


def _collect(actions: list[RawRow], items_by_id: Mapping[str, Row], gold: set[str], page_votes: PageVotes) -> None:
    lines: dict[str, tuple[str, Row]] = {}
    for raw in actions:
        if isinstance(raw.value, Fault):
            raise AfzalError(raw.value.detail, where=raw.where, remedy="remove the line, or restore the file")
        if raw.value.get("retracts") is not None:
            page_votes.counts["retracted"] += lines.pop(str(raw.value["retracts"]), None) is not None
        if raw.value.get("kind") != "undo":
            lines[str(raw.value.get("id"))] = raw.where, raw.value
    hashes: dict[str, str | None] = {}
    for where, line in lines.values():
        ident = str(line.get("item"))
        if ident not in items_by_id:
            raise AfzalError(
                f"the item {ident!r} is not in {ITEMS}", where=where, remedy="keep both files of the page together"
            )
        if ident not in hashes:
            hashes[ident] = _content_sha256(items_by_id[ident])
        if line.get("item_sha256", hashes[ident]) != hashes[ident] is not None:
            raise AfzalError(
                f"the item {ident!r} has changed since this vote",
                where=where,
                why=f"its prompt or its responses in {ITEMS} are not those that were shown",
                remedy=f"restore {ITEMS}, or remove the vote",
            )
        page_votes.counts["notes"] += bool(line.get("note"))
        page_votes.counts["flags"] += bool(line.get("flag"))
        if line.get("kind") == "skip":
            page_votes.counts["skips"] += 1
            page_votes.skips.setdefault(ident, []).append(str(line.get("reason") or ""))
            continue
        weighting = _weighting(line, ident in gold, page_votes.counts)
        try:
            page_votes.votes.setdefault(ident, []).extend({**vote, **weighting} for vote in _votes(line))
        except (KeyError, TypeError, ValueError, IndexError):
            raise AfzalError(f"is not a vote of kind {line.get('kind')!r}", where=where) from None


def _content_sha256(row: Row) -> str | None:
    """The hash of a row's prompt and responses that the page writes with each vote; None for rows with images or
    sounds, which rows name and the hash holds."""
    try:
        content = [row["prompt"], [response["turns"] for response in row["responses"]]]
    except (KeyError, TypeError):
        return None
    turns = [content[0], *content[1]]
    parts = (m.get("content") for one in turns if isinstance(one, list) for m in one if isinstance(m, Mapping))
    if any(not isinstance(part, str) for part in parts):
        return None
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _weighting(line: Row, on_gold: bool, counts: Counter[str]) -> dict[str, Any]:
    """The weight of a vote that is not trained on; empty for one that is."""
    name = "repeats" if line.get("repeat_of") else "gold" if on_gold else "votes"
    counts[name] += 1
    return {} if name == "votes" else {"weight": 0.0}


def _votes(line: Row) -> Iterator[dict[str, Any]]:
    facts = {k: line[k] for k in ("id", "at", "annotator", "axis", "seconds") if line.get(k) is not None}
    shown = line["shown"]
    match line["kind"]:
        case "pair":
            first, second = shown
            strength = {} if line.get("strength") is None else {"strength": line["strength"]}
            opinion = {"first": first, "second": second, "outcome": line["outcome"], "shown_first": first}
            yield {"vote": "comparison", **opinion, **strength, **facts}
        case "rank":
            yield {"vote": "ranking", "groups": line["groups"], "shown": shown, **facts}
        case "rate":
            ratings = [(k, v) for k, v in zip(shown, line["values"], strict=True) if v is not None]
            if "seconds" in facts:
                facts["seconds"] /= max(1, len(ratings))
            for response, value in ratings:
                yield {"vote": "rating", "response": response, "value": value, "kind": "score", **facts}
        case _:
            raise ValueError
