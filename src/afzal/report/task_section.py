"""A report section on the tasks of a run: passes through each task, its held-out loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.health.tasks import accuracy_of, loss_of, task_names
from afzal.report.sections import Section, Table

_COUNTS = ("task", "items", "per epoch", "passes", "held out")
_TEXT = "All items, items per epoch, how often an epoch passes through the task, and the held-out loss"
_LOSSES = ("loss", "loss at the start")
_ACCURACIES = ("accuracy, %", "95% interval", "at the start, %")


def sections(facts: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The section, if the data have several tasks."""
    names = task_names(facts)
    if len(names) < 2:
        return []
    held_out = [r for r in metrics if r.get("kind") == "eval"]
    entries = facts["data"]["tasks"]
    compared = any(accuracy_of(r, k) is not None for r in held_out for k in range(len(entries)))
    text = f"{_TEXT} and share of correctly ranked pairs. Intervals are over prompts."
    rows = [
        (*_counts(entry), *_losses(k, held_out), *(_accuracies(k, held_out) if compared else ()))
        for k, entry in enumerate(entries)
    ]
    columns = (*_COUNTS, *_LOSSES, *(_ACCURACIES if compared else ()))
    return [Section("Tasks", text if compared else f"{_TEXT}.", table=Table(columns, tuple(rows)))]


def _counts(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return str(entry.get("name")), *(entry.get(name) for name in ("items", "per_epoch", "passes", "held_out"))


def _losses(task: int, held_out: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """The last and the first loss."""
    losses = [loss for r in held_out if (loss := loss_of(r, task)) is not None]
    return (round(losses[-1], 4), round(losses[0], 4)) if losses else (None, None)


def _accuracies(task: int, held_out: Sequence[Mapping[str, Any]]) -> tuple[float | None, str, float | None]:
    """The last accuracy with its interval, and the first accuracy."""
    accuracies = [accuracy for r in held_out if (accuracy := accuracy_of(r, task)) is not None]
    if not accuracies:
        return None, "", None
    value, low, high = accuracies[-1]
    return round(100 * value, 1), f"[{100 * low:.1f}, {100 * high:.1f}]", round(100 * accuracies[0][0], 1)
