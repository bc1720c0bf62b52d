"""Judges' verdicts on a run: one report section for each ``afzal judge`` folder inside the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.report.sections import Section, Table
from afzal.runs import redact_texts
from afzal.text import is_number

FILE = "summary.json"
_COLUMNS = ("judge", "against", "win", "tie", "loss", "no verdict", "win rate, %", "95% interval", "with people, %")
_TEXT = (
    "Verdicts on answers to the same prompts. Ties count half, and pairs without a verdict are left out of the win "
    "rate. Intervals are over prompts. The last column is how often the judge agrees with individual people."
)


def read(run: Path, notes: list[str]) -> list[Section]:
    """The sections, in order of folder names; damaged files are added to ``notes``."""
    judge_sections = []
    for path in sorted(run.glob(f"*/{FILE}")):
        try:
            body = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError):
            notes.append(f"{path.parent.name}/{FILE} cannot be read.")
            continue
        if isinstance(body, list) and (rows := [_row(s) for s in redact_texts(body) if _of_two_models(s)]):
            judge_sections.append(Section(f"Judges: {path.parent.name}", _TEXT, table=Table(_COLUMNS, tuple(rows))))
    return judge_sections


def _of_two_models(summary: Any) -> bool:
    return isinstance(summary, Mapping) and "judge" in summary and isinstance(summary.get("models"), Mapping)


def _row(summary: Mapping[str, Any]) -> tuple[str | float | None, ...]:
    models = summary["models"]
    rate, people = models.get("win_rate") or {}, (summary.get("people") or {}).get("agreement") or {}
    counts = [_number(models.get(name)) for name in ("win", "tie", "loss", "no_verdict")]
    against = f"{models.get('ours')} against {models.get('theirs')}"
    ends: Sequence[float | None] = [_percent(rate.get(end)) for end in ("low", "high")]
    band = f"[{ends[0]:.1f}, {ends[1]:.1f}]" if ends[0] is not None and ends[1] is not None else ""
    return str(summary["judge"]), against, *counts, _percent(rate.get("value")), band, _percent(people.get("value"))


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _percent(value: Any) -> float | None:
    return round(100 * value, 1) if is_number(value) else None
