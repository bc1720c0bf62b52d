"""The experiment's figures as a Markdown page, from the comparison's files."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor

_REWARD = "summed valence"
_ENDS = ("summed valence", "valence per word", "reward model")


def write(folder: Path) -> Path:
    """Write ``sentiment.md`` next to the comparison's files in ``folder``."""
    comparison = json.loads((folder / "compare.json").read_text())
    page = folder / "sentiment.md"
    page.write_text("\n".join(_lines(comparison)) + "\n")
    return page


def _lines(comparison: dict[str, Any]) -> list[str]:
    versions = ", ".join(
        f"{name} {comparison['versions'][name]}" for name in ("afzal", "python", "torch", "transformers")
    )
    grid, methods = comparison["matched_kl"], comparison["methods"]
    return [
        "# Controlled sentiment at a small scale",
        "",
        f"{date.today()}, one thread of {os.cpu_count()} cores of {processor()}; {versions}. Made by "
        "`python -m benchmarks.sentiment OUT`.",
        f"Seeds {', '.join(map(str, comparison['seeds']))}; intervals are 95% over seeds (Student's t). "
        "[All figures](compare.csv).",
        "",
        "![Summed valence against KL](compare.svg)",
        "",
        f"{_REWARD.capitalize()} at a matched KL to the start, nats per answer, linear between snapshots:",
        "",
        "| method | " + " | ".join(f"KL {kl:g}" for kl in grid) + " |",
        "|---" * (1 + len(grid)) + "|",
        *("| " + " | ".join([m["label"], *map(_matched, m["matched"])]) + " |" for m in methods),
        "",
        "Where each method ends:",
        "",
        "| method | " + " | ".join(_ENDS) + " | KL, nats | tokens | seconds |",
        "|---" * (4 + len(_ENDS)) + "|",
        *("| " + " | ".join([m["label"], *_end(m["judged"], bound=m["kl_is_bound"])]) + " |" for m in methods),
    ]


def _matched(at: dict[str, Any]) -> str:
    if at["value"] is None:
        return "not reached"
    return _interval(at) + ("" if at["reached"] == at["of"] else f" ({at['reached']} of {at['of']} seeds)")


def _end(judged: dict[str, Any], *, bound: bool) -> list[str]:
    kl = f"at most {judged['kl']['value']:.2f}" if bound else _interval(judged["kl"])
    rewards = [_interval(judged["rewards"][name]) for name in _ENDS]
    return [*rewards, kl, f"{judged['tokens']['value']:.1f}", f"{judged['seconds']['value']:.0f}"]


def _interval(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return f"{value['value']:.2f}"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
