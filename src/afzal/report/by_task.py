"""What became of the tasks of a run: how often training passed through each, and its held-out accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.health.tasks import accuracy_of, task_names
from afzal.report.sections import Section, Table

_COLUMNS = ("task", "items", "per epoch", "passes", "held out", "accuracy, %", "95 % interval", "at the start, %")
_TEXT = (
    "Items there are, items of an epoch, how often an epoch passes through the task, and the share of held-out pairs "
    "that are ordered right. Intervals are over prompts."
)


def sections(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The section, where the data have several tasks."""
    names = task_names(facts)
    if len(names) < 2:
        return []
    held_out = [r for r in metrics if r.get("kind") == "eval"]
    rows = [_row(entry, k, held_out) for k, entry in enumerate(facts["data"]["tasks"])]
    return [Section("Tasks", _TEXT, table=Table(_COLUMNS, tuple(rows)))]


def _row(entry: Mapping[str, Any], task: int, held_out: Sequence[Mapping[str, Any]]) -> tuple[str | float | None, ...]:
    known = [known for r in held_out if (known := accuracy_of(r, task)) is not None]
    counts = [entry.get(name) for name in ("items", "per_epoch", "passes", "held_out")]
    if not known:
        return str(entry.get("name")), *counts, None, "", None
    value, low, high = known[-1]
    band = f"[{100 * low:.1f}, {100 * high:.1f}]"
    return str(entry.get("name")), *counts, round(100 * value, 1), band, round(100 * known[0][0], 1)
