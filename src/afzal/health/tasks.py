"""Check tasks that are trained together: is one of them under-fitted or over-fitted?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.health.curves import Curves, Diagnosis
from afzal.text import interval, number

ACCURACY = "tasks/accuracies/"
"""Prefix of a task's held-out accuracy in an evaluation, followed by the task's number and nothing, /low or /high."""

LOSS = "tasks/losses/"
"""Prefix of a task's held-out loss, followed by the task's number."""

_RULE = (
    "under-fitted: the 95% interval of the last held-out accuracy over prompts includes 50%; over-fitted: an earlier "
    "evaluation's interval lies above the last one's"
)


def tasks(c: Curves) -> Diagnosis | None:
    """Is every task better than chance, and none worse than before?"""
    names = task_names(c.facts)
    last = next((r for r in reversed(c.held_out) if f"{ACCURACY}0" in r), None)
    if last is None or len(names) < 2:
        return None
    worn, behind = [], []
    for k, name in enumerate(names):
        known = [known for r in c.held_out if (known := accuracy_of(r, k)) is not None]
        if len(known) < 2:
            continue
        value, low, high = known[-1]
        best = max(known, key=lambda at: at[1])
        if best[1] > high:
            worn.append(f"{name} ({number(best[0], 3)} to {number(value, 3)})")
        elif low <= 0.5 <= high:
            behind.append(f"{name} ({number(value, 3)} {interval(low, high, 3)})")
    if not worn and not behind:
        return Diagnosis("tasks", "good", "every task is better than chance", "No task fell from its best.", _RULE)
    groups = ([f"over-fitted: {', '.join(worn)}"] if worn else []) + (
        [f"under-fitted: {', '.join(behind)}"] if behind else []
    )
    return Diagnosis(
        "tasks",
        "watch" if worn else "open",
        f"tasks: {'; '.join(groups)}",
        "A task that falls from its best is repeated too often; one that stays at chance has too small a "
        "share, too few held-out prompts, or preferences that the model cannot learn.",
        _RULE,
        "lower the share of an over-fitted task in the mixture and raise that of an under-fitted one, or "
        "objective=group_dpo",
    )


def task_names(facts: Mapping[str, Any]) -> list[str]:
    """A run's task names in order of their numbers."""
    known = facts.get("data")
    entries = known.get("tasks") if isinstance(known, Mapping) else None
    return [str(e.get("name")) for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []


def accuracy_of(record: Mapping[str, Any], task: int) -> tuple[float, float, float] | None:
    """A task's accuracy in an evaluation with its interval's bounds; None if the evaluation has none."""
    values = [record.get(f"{ACCURACY}{task}{end}") for end in ("", "/low", "/high")]
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def loss_of(record: Mapping[str, Any], task: int) -> float | None:
    """A task's mean loss in an evaluation; None if the evaluation has none."""
    value = record.get(f"{LOSS}{task}")
    return float(value) if isinstance(value, int | float) else None
