"""The models' answers side by side, judged by word valence, and the leaderboard of start, SFT and DPO."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.people import data, steps
from benchmarks.sentiment import valence

MODELS = ("start", "sft", "dpo")
JUDGE = f"{Path(valence.__file__)}:summed"


def answers(out: Path, name: str) -> list[tuple[str, str]]:
    """(opening, answer) of a model, in the order drawn."""
    rows = map(json.loads, (out / f"answers-{name}.jsonl").read_text("utf-8").splitlines())
    return [(row["prompt"], row["completion"]) for row in rows]


def write_games(out: Path, to: Path) -> None:
    """A row for each two models and each k-th answer of theirs to an opening."""
    said = {name: answers(out, name) for name in MODELS}
    rows: list[dict[str, Any]] = []
    for first, second in combinations(reversed(MODELS), 2):
        for k, ((prompt, mine), (_, theirs)) in enumerate(zip(said[first], said[second], strict=True)):
            row = data.item_row(prompt, [(mine, first), (theirs, second)])
            rows.append({**row, "id": f"{first}-{second}-{k}"})
    data.write_rows(to, rows)


def judge(games: Path, to: Path) -> None:
    """Every game by the rule of valence, beside the yardstick of length."""
    steps.afzal("judge", games, "--judge", JUDGE, "--judge", "rule:longest", "--out", to)


def leaderboard(rows: Path, to: Path) -> None:
    """Strengths by the rule of valence, with intervals over openings."""
    steps.afzal("leaderboard", rows, "--judge", "summed", "--out", to)
