"""Tasks of a run: their numbers, their shares of an epoch, and a summary of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal import data
from afzal.data.mixture import Mixture
from afzal.errors import AfzalError
from afzal.records import Item
from afzal.tokens import Tree

NO_TASK = "(none)"
"""The task of items that name none, if others do."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Task names in order of their numbers, and each item's task number by item id; no names means no tasks."""

    names: tuple[str, ...]
    number_of: dict[str, int]

    @property
    def several(self) -> bool:
        """Whether there is more than one task."""
        return len(self.names) > 1

    def on(self, trees: Sequence[Tree]) -> list[Tree]:
        """The trees with their task numbers set."""
        return [replace(t, task=self.number_of.get(t.item_id, 0)) for t in trees] if self.several else list(trees)


def tasks_of(items: Sequence[Item], field: str) -> Tasks:
    """The tasks that items name in a field of their rows, sorted by name."""
    task_of = {item.id: str(item.extra.get(field) or "").strip() for item in items}
    if not any(task_of.values()):
        return Tasks((), {})
    names = sorted({name or NO_TASK for name in task_of.values()})
    number = {name: k for k, name in enumerate(names)}
    return Tasks(tuple(names), {i: number[name or NO_TASK] for i, name in task_of.items()})


def require_tasks(items: Sequence[Item], field: str) -> None:
    """Require that every item names its task.

    Raises:
        AfzalError: one does not.
    """
    for item in items:
        if not str(item.extra.get(field) or "").strip():
            other_fields = ", ".join(sorted(item.extra)) or "none"
            raise AfzalError(
                f"a row has no {field!r} that names its task",
                where=item.where or item.id,
                why=f"further fields of this row: {other_fields}",
                remedy="add the field to every row, or name another one with task=",
            )


def epoch_of(trees: Sequence[Tree], tasks: Tasks, mixture: Mixture | None, seed: int) -> list[int]:
    """Indices of the trees of one epoch: each once, or in the shares of a mixture."""
    if mixture is None or not tasks.several:
        return list(range(len(trees)))
    names = [tasks.names[t.task] for t in trees]
    return data.epoch(names, mixture.shares(Counter(names)), seed)


def task_facts(tasks: Tasks, trees: Sequence[Tree], chosen: Sequence[int], held_out: Sequence[Tree]) -> list[Any]:
    """For ``run.json``, per task: the number of items, items per epoch, passes over them per epoch, and held-out
    items."""
    total, per_epoch, held_out_counts = (
        Counter(t.task for t in part) for part in (trees, [trees[k] for k in chosen], held_out)
    )
    return [
        {
            "name": name,
            "items": total[k],
            "per_epoch": per_epoch[k],
            "passes": round(per_epoch[k] / total[k], 4) if total[k] else 0.0,
            "held_out": held_out_counts[k],
        }
        for k, name in enumerate(tasks.names)
    ]


def task_lines(facts: Sequence[Any]) -> list[str]:
    """The shares and passes of all tasks, as one line of text."""
    total = sum(f["per_epoch"] for f in facts) or 1
    parts = [f"{f['name']} {f['per_epoch'] / total:.0%} ({f['passes']:.3g} x {f['items']} items)" for f in facts]
    return [f"an epoch is {', '.join(parts)}"]
