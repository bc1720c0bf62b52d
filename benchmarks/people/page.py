"""The page, and the figures on it. It contains no time, so it is reproducible byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afzal.report.board import write_board
from afzal.stats import intervals
from benchmarks.people import judged
from benchmarks.sentiment import valence

WANTED_WIN_RATE, WANTED_SHARE = 0.55, 0.80
_RESAMPLES = 2000
_NAMES = {"start": "start", "sft": "SFT", "dpo": "DPO", "clean": "DPO, all clean labels"}


def figures(out: Path) -> dict[str, Any]:
    """Win rate of DPO against the start, mean valence of each model, and the share of the clean gain, with intervals
    over openings (by resampling openings for the share)."""
    worth = {name: [(p, valence.summed(p, a)) for p, a in judged.answers(out, name)] for name in _NAMES}
    wins = [0.5 * (1 + np.sign(a - b)) for (_, a), (_, b) in zip(worth["dpo"], worth["start"], strict=True)]
    prompts = [p for p, _ in worth["dpo"]]
    return {
        "win_rate": _win_rate(prompts, wins),
        "valence": {name: _estimate(*zip(*rows, strict=True)) for name, rows in worth.items()},
        "share_of_clean_gain": _share(*(_by_prompt(worth[name]) for name in ("start", "dpo", "clean"))),
        "annotators": _annotators(out),
        "prompts": len(set(prompts)),
    }


def _annotators(out: Path) -> list[str]:
    report = json.loads((out / "agreement" / "aggregate.json").read_text("utf-8"))
    return [line for line in report.get("findings", []) if "reversed?" in line]


def _win_rate(prompts: Sequence[str], wins: Sequence[float]) -> dict[str, float]:
    rate = intervals.share(intervals.clustered(prompts, map(float, wins)))
    return {"value": rate.value, "low": rate.low, "high": rate.high}


def _estimate(prompts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    mean = intervals.mean(intervals.clustered(prompts, map(float, values)))
    low, high = mean.ends
    return {"value": mean.mean, "low": low, "high": high}


def _by_prompt(rows: Sequence[tuple[str, float]]) -> np.ndarray:
    """Mean of each opening ``[X]``, in order of first appearance."""
    values: dict[str, list[float]] = {}
    for prompt, value in rows:
        values.setdefault(prompt, []).append(value)
    return np.array([np.mean(v) for v in values.values()])


def _share(start: np.ndarray, dpo: np.ndarray, clean: np.ndarray) -> dict[str, float] | None:
    """Gain of DPO as a share of the gain on clean labels, with the same resampled openings for all three models.

    None if the clean labels gain nothing in some resample, since the share is then undefined."""
    drawn = np.random.default_rng(0).integers(len(start), size=(_RESAMPLES, len(start)))
    clean_gain = (clean - start)[drawn].mean(1)
    if clean_gain.min() <= 0 or clean.mean() <= start.mean():
        return None
    low, high = np.quantile((dpo - start)[drawn].mean(1) / clean_gain, [0.025, 0.975])
    return {"value": float((dpo - start).mean() / (clean - start).mean()), "low": float(low), "high": float(high)}


def findings(out: Path) -> list[str]:
    """The results in sentences, with whether each goal is reached."""
    f = figures(out)
    rate, share = f["win_rate"], f["share_of_clean_gain"]
    return [
        f"DPO beats the start on {_percent(rate)} of held-out answers, by word valence"
        f" ({_reached(rate['low'] > WANTED_WIN_RATE)}: lower bound above 55%).",
        _of_clean(share),
        *f["annotators"],
        f"Intervals are 95% over {f['prompts']} openings that no training saw.",
    ]


def _of_clean(share: dict[str, float] | None) -> str:
    if share is None:
        return "The run on all clean labels has no gain that this run could have a share of (GOAL NOT REACHED)."
    goal = _reached(share["value"] >= WANTED_SHARE)
    return f"It has {_percent(share)} of the valence gain of a run on all 497 clean labels ({goal}: at least 80%)."


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _reached(goal: bool) -> str:
    return "goal reached" if goal else "GOAL NOT REACHED"


def write(out: Path, to: Path) -> None:
    """Write ``people.html``, the same as Markdown, CSV, JSON and a drawing, and ``figures.json``."""
    f = figures(out)
    parts = [
        ["votes of the first round", "votes-1.jsonl"],
        ["what was asked next, and why", "to-label.jsonl"],
        ["all votes", "votes.jsonl"],
        ["annotators", "agreement/"],
        ["rows trained on", "aggregated.jsonl"],
        ["SFT, DPO, DPO on clean labels", "sft/report.html, dpo/report.html, clean/report.html"],
        ["verdicts and the judges' card", "judged/"],
        ["leaderboard", "leaderboard/leaderboard.html"],
    ]
    body = {
        "title": "From votes to a better model",
        "subtitle": "three simulated annotators, one with reversed votes",
        "findings": findings(out),
        "facts": [["judge", "summed word valence (VADER)"], ["model", "stories260k"]],
        "unit": "mean summed valence of the answers",
        "rule": f["valence"]["start"]["value"],
        "lines": [{"name": name, **f["valence"][key]} for key, name in _NAMES.items()],
        "differences": [],
        "tables": [
            {"title": "Parts", "words": "Next to this page's folder.", "columns": ["part", "file"], "rows": parts}
        ],
    }
    write_board(to, body, "people")
    (to / "figures.json").write_text(json.dumps(f, indent=1) + "\n", "utf-8")
