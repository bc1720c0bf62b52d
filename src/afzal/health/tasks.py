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
    "under-fitted: the 95% interval of the last held-out accuracy over prompts includes 50%; worse than chance: it "
    "lies below 50%; over-fitted: an earlier evaluation's interval lies above the last one's"
)


def tasks(c: Curves) -> Diagnosis | None:
    """Is every task better than chance, and none worse than before?"""
    names = task_names(c.facts)
    last = next((r for r in reversed(c.held_out) if f"{ACCURACY}0" in r), None)
    if last is None or len(names) < 2:
        return None
    by_task = [[accuracy for r in c.held_out if (accuracy := accuracy_of(r, k)) is not None] for k in range(len(names))]
    if not any(len(accuracies) > 1 for accuracies in by_task):
        return None
    over_fitted, backwards, under_fitted = [], [], []
    for name, accuracies in zip(names, by_task, strict=True):
        if len(accuracies) < 2:
            continue
        value, low, high = accuracies[-1]
        best = max(accuracies, key=lambda accuracy: accuracy[1])
        if best[1] > high:
            over_fitted.append(f"{name} ({number(best[0], 3)} to {number(value, 3)})")
        elif low <= 0.5:
            group = under_fitted if high >= 0.5 else backwards
            group.append(f"{name} ({number(value, 3)} {interval(low, high, 3)})")
    groups = {"over-fitted": over_fitted, "worse than chance": backwards, "under-fitted": under_fitted}
    titles = [f"{title}: {', '.join(group)}" for title, group in groups.items() if group]
    if not titles:
        return Diagnosis("tasks", "good", "every task is better than chance", "No task fell from its best.", _RULE)
    return Diagnosis(
        "tasks",
        "watch" if over_fitted or backwards else "open",
        f"tasks: {'; '.join(titles)}",
        "A task that falls from its best is repeated too often; one that stays at chance has too small a share, too "
        "few held-out prompts, or preferences that the model cannot learn; one that is worse than chance may have "
        "swapped labels.",
        _RULE,
        "lower the share of an over-fitted task in the mixture and raise that of an under-fitted one, or "
        "objective=group_dpo; look at the rows of a task that is worse than chance with `afzal check`",
    )


def task_names(facts: Mapping[str, Any]) -> list[str]:
    """A run's task names in order of their numbers."""
    data = facts.get("data")
    entries = data.get("tasks") if isinstance(data, Mapping) else None
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
