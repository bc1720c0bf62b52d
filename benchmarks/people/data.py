"""Input of the loop: pairs of stories to vote on, ten gold pairs, all clean labels, held-out openings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal import records
from afzal.data import native
from benchmarks.sentiment import data, valence


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes: pairs of the first and second round, gold pairs, held-out openings, answers to each, updates."""

    first: int = 200
    more: int = 100
    gold: int = 10
    held_out: int = 107
    answers: int = 8
    updates: int = 96


PROPER = Size()
QUICK = Size(first=12, more=6, held_out=6, answers=2, updates=2)


def pairs() -> list[dict[str, Any]]:
    """The 497 pairs, ordered by hash; ``chosen`` has the larger summed valence."""
    path = valence.shared() / "derived" / "stories_valence_pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return sorted(rows, key=lambda row: _digest(row["prompt"]))


def worth() -> dict[tuple[str, str], float]:
    """Map (opening, continuation) to summed valence, for every text of the pairs."""
    sides = ("chosen", "rejected")
    return {(r["prompt"], r[side]): r[f"score_{side}"] for r in pairs() for side in sides}


def write(folder: Path, size: Size) -> None:
    """Write ``gold.jsonl``, ``first.jsonl``, ``pool.jsonl`` (pairs without votes, except gold), ``clean.jsonl`` (all
    497 with their true labels) and ``held-out.jsonl`` (openings that are in no pair)."""
    rows = pairs()
    gold, pool = rows[: size.gold], rows[size.gold :]
    write_rows(folder / "gold.jsonl", map(_labelled, gold))
    write_rows(folder / "first.jsonl", map(_unlabelled, pool[: size.first]))
    write_rows(folder / "pool.jsonl", map(_unlabelled, pool))
    write_rows(folder / "clean.jsonl", map(_labelled, rows))
    known = {row["prompt"] for row in rows}
    data.write_openings(folder / "openings")
    parts = [folder / "openings" / f"{name}.jsonl" for name in ("held-out", "sft")]
    openings = [json.loads(line)["prompt"] for part in parts for line in part.read_text("utf-8").splitlines()]
    unseen = [o for o in openings if o not in known][: size.held_out]
    write_rows(folder / "held-out.jsonl", ({"prompt": o} for o in unseen))


def item_row(prompt: str, answers: Iterable[tuple[str, str | None]]) -> dict[str, Any]:
    """An Afzal row without votes, from texts and the names of the models that wrote them."""
    responses = tuple(records.Response(text, source) for text, source in answers)
    return native.to_row(records.Item(_digest(prompt)[:12], prompt, responses))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _labelled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("prompt", "chosen", "rejected")}


def _unlabelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The two texts in an order that says nothing about which is better."""
    texts = sorted((row["chosen"], row["rejected"]), key=_digest)
    return item_row(row["prompt"], [(text, None) for text in texts])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
