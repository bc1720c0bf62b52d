"""The page, and the figures on it. It contains no time, so it is reproducible byte for byte."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afzal.report.board import write_board
from afzal.stats import intervals
from benchmarks.media.steps import OBJECTIVES
from benchmarks.media.world import FLIPPED, KIND, SLOPPY, WORLDS, Size, World, captions

MODELS = ("start", "sft", "dpo", "mpo")
BEST = "mpo"
"""The model whose generated captions are compared with the truth."""
_NAMES = {"start": "start", "sft": "SFT", "dpo": "DPO", "mpo": "MPO"}
_WHAT = {"shapes": "pictures", "tones": "sounds"}
_TYPES = {"shapes": "image/png", "tones": "audio/wav"}


def chosen(logps: np.ndarray) -> np.ndarray:
    """``[X]`` 1 if the true caption, the first, is likelier than every other; a tie is 0."""
    return (logps[:, :1] > logps[:, 1:]).all(1).astype(float)


def believed(logps: np.ndarray) -> np.ndarray:
    """``[X]`` probability of the true caption, the first, among all captions."""
    return np.exp(logps[:, 0] - np.logaddexp.reduce(logps, axis=1))


def figures(out: Path) -> dict[str, Any]:
    """Per world and model, the share of held-out media whose true caption is the likeliest, seen and blank; its mean
    probability among all captions; the gain of preference training over SFT; and the share whose greedy caption by the
    best model is true. Intervals are over media."""
    return {world: _of_world(out / world) for world in WORLDS}


def _of_world(folder: Path) -> dict[str, Any]:
    logps = {name: json.loads((folder / f"measured-{name}.json").read_text("utf-8")) for name in MODELS}
    hits = {(name, how): chosen(np.array(logps[name][how])) for name in MODELS for how in ("seen", "blank")}
    exact = np.array([float(a == b) for a, b in zip(_truths(folder), _greedy_captions(folder), strict=True)])
    return {
        **{how: {name: _share(hits[name, how]) for name in MODELS} for how in ("seen", "blank")},
        "probability": {name: _mean(believed(np.array(logps[name]["seen"]))) for name in MODELS},
        "gain": {name: _mean(hits[name, "seen"] - hits["sft", "seen"]) for name in ("dpo", "mpo")},
        "greedy": _share(exact),
        "held_out": len(exact),
        "captions": len(logps["sft"]["seen"][0]),
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    estimate = intervals.mean(_each(values))
    low, high = estimate.ends
    return {"value": estimate.mean, "low": low, "high": high}


def _each(values: np.ndarray) -> list[intervals.Cluster]:
    return intervals.clustered(range(len(values)), values.tolist())


def _share(hits: np.ndarray) -> dict[str, float]:
    estimate = intervals.share(_each(hits))
    low, high = estimate.ends
    return {"value": estimate.value, "low": low, "high": high}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _truths(folder: Path) -> list[str]:
    return [row["responses"][0][0]["content"] for row in _rows(folder / "data" / "held-out.jsonl")]


def _greedy_captions(folder: Path) -> list[str]:
    """The greedy captions of the best model, in the order of the held-out media."""
    answers = _rows(folder / "answers" / "answers.jsonl")
    texts = {row["prompt"][0]["content"][0]["sha256"]: _text(row["completion"]) for row in answers}
    names = [row["prompt"][0]["content"][0]["path"] for row in _rows(folder / "data" / "held-out.jsonl")]
    return [texts[hashlib.sha256((folder / "data" / name).read_bytes()).hexdigest()] for name in names]


def _text(completion: Any) -> str:
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return text.strip()


def findings(out: Path) -> list[str]:
    """The results in sentences, with whether each goal is reached."""
    lines, all_figures = [], figures(out)
    for world, f in all_figures.items():
        what, n, gain = _WHAT[world], f["captions"], f["gain"]
        lines.append(
            f"Held-out {what}: the true caption is the likeliest of {n} for {_percent(f['seen']['sft'])} after SFT,"
            f" {_percent(f['seen']['dpo'])} after DPO and {_percent(f['seen'][BEST])} after MPO. DPO gains"
            f" {_points(gain['dpo'])}, MPO {_points(gain[BEST])}"
            f" ({_reached(min(each['low'] for each in gain.values()) > 0)}: both intervals exclude 0)."
        )
        chance = all(f["blank"][name]["low"] <= 1 / n <= f["blank"][name]["high"] for name in ("dpo", BEST))
        lines.append(
            f"With blank {what} it is the likeliest for {_percent(f['blank']['dpo'])} after DPO and for"
            f" {_percent(f['blank'][BEST])} after MPO ({_reached(chance)}: chance, {100 / n:.1f}%, is in both"
            " intervals)."
        )
        p = {name: f"{f['probability'][name]['value']:.2f}" for name in MODELS}
        lines.append(
            f"Among all captions the true one has a mean probability of {p['sft']} after SFT, {p['dpo']} after DPO and"
            f" {p['mpo']} after MPO. Greedy captions after MPO are true of {_percent(f['greedy'])} of {what}."
        )
    held_out = " and ".join(f"{f['held_out']} {_WHAT[world]}" for world, f in all_figures.items())
    lines.append(f"Intervals are 95% over {held_out} that no training saw; each is one prompt.")
    return lines


def _points(gain: dict[str, float]) -> str:
    return f"{100 * gain['value']:+.1f} points [{100 * gain['low']:.1f}, {100 * gain['high']:.1f}]"


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f}% [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _reached(goal: bool) -> str:
    return "goal reached" if goal else "GOAL NOT REACHED"


def write(out: Path, to: Path, size: Size) -> None:
    """Write ``media.html``, the same as Markdown, CSV, JSON and a drawing, and ``figures.json``."""
    f = figures(out)
    lines = [
        {"name": f"{_WHAT[world]}, {_NAMES[name]}{', blank' if how == 'blank' else ''}", **f[world][how][name]}
        for world in WORLDS
        for name in MODELS
        for how in ("seen", "blank")
    ]
    body = {
        "title": "What preferences about images and sounds teach",
        "subtitle": "tiny models from random weights, towers frozen after SFT",
        "findings": findings(out),
        "facts": [
            ["pictures", f"LLaVA, {len(captions('shapes'))} captions: number, colour, shape"],
            ["sounds", f"Qwen2-Audio, {len(captions('tones'))} captions: number, length, pitch"],
            ["demonstrations", f"{size.demonstrations:,} of each; {100 * SLOPPY:.0f}% count one too many"],
            ["preferences", f"{size.preferences:,} of each; {100 * FLIPPED:.0f}% are for the false caption"],
            ["objectives", f"DPO: beta 0.1; MPO: {OBJECTIVES['mpo']}"],
        ],
        "unit": "share whose true caption is the likeliest of all",
        "rule": 0.0,
        "lines": lines,
        "differences": [],
        "gallery": [shown for world in WORLDS for shown in _gallery(out / world, world, size.shown)],
    }
    write_board(to, body, "media")
    (to / "figures.json").write_text(json.dumps(f, indent=1) + "\n", "utf-8")


def _gallery(folder: Path, world: World, n: int) -> list[dict[str, Any]]:
    """The first ``n`` held-out media, with each model's likeliest caption."""
    rows = _rows(folder / "data" / "held-out.jsonl")[:n]
    logps = {name: json.loads((folder / f"measured-{name}.json").read_text("utf-8")) for name in MODELS}
    return [_shown(folder, world, row, {_NAMES[m]: logps[m]["seen"][k] for m in MODELS}) for k, row in enumerate(rows)]


def _shown(folder: Path, world: World, row: dict[str, Any], logps: dict[str, Sequence[float]]) -> dict[str, Any]:
    content = (folder / "data" / row["prompt"][0]["content"][0]["path"]).read_bytes()
    texts = [response[0]["content"] for response in row["responses"]]
    best = {name: int(np.argmax(values)) for name, values in logps.items()}
    return {
        "kind": KIND[world],
        "title": texts[0],
        "source": f"data:{_TYPES[world]};base64,{base64.b64encode(content).decode()}",
        "said": [[name, texts[k], "right" if k == 0 else "wrong"] for name, k in best.items()],
    }
