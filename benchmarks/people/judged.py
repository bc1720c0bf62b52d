"""Compare the models' answers by word valence, and rank start, SFT and DPO."""

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
    """(opening, answer) pairs of a model, in the order sampled."""
    rows = map(json.loads, (out / f"answers-{name}.jsonl").read_text("utf-8").splitlines())
    return [(row["prompt"], row["completion"]) for row in rows]


def write_games(out: Path, to: Path) -> None:
    """Write a row for every two models and their k-th answers to an opening."""
    by_model = {name: answers(out, name) for name in MODELS}
    rows: list[dict[str, Any]] = []
    for first, second in combinations(reversed(MODELS), 2):
        for k, ((prompt, mine), (_, theirs)) in enumerate(zip(by_model[first], by_model[second], strict=True)):
            row = data.item_row(prompt, [(mine, first), (theirs, second)])
            rows.append({**row, "id": f"{first}-{second}-{k}"})
    data.write_rows(to, rows)


def judge(games: Path, to: Path) -> None:
    """Judge every game by valence, and by length as a baseline."""
    steps.afzal("judge", games, "--judge", JUDGE, "--judge", "rule:longest", "--out", to)


def leaderboard(rows: Path, to: Path) -> None:
    """Rank the models by valence, with intervals over openings."""
    steps.afzal("leaderboard", rows, "--judge", "summed", "--out", to)
