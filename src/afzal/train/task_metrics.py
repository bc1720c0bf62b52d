"""Held-out metrics by task number: the mean loss and, for pairs, the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from afzal.objectives import Pairs
from afzal.objectives.metrics import Tally
from afzal.objectives.registry import Unit
from afzal.stats.intervals import clustered, share

TASK_ACCURACY = "tasks/accuracies/"
"""Prefix of the name of a task's held-out accuracy, before its number and nothing, ``/low`` or ``/high``."""

TASK_LOSS = "tasks/losses/"
"""Prefix of the name of a task's held-out loss, a mean over its units."""


def losses(unit: Unit, unit_losses: Tensor, weights: Tensor, pairs: Pairs, response_of: Tensor) -> Tally:
    """Sum of weighted losses and sum of weights for each task in a batch.

    Args:
        unit_losses, weights: ``[n]`` losses of the batch's units, and their weights in the mean.
        response_of: ``[M]`` int64, the response of each scored token.
    """
    task = _task_of_units(unit, pairs, response_of)
    sums: Tally = {}
    for k in task.unique().tolist():
        task_weights = weights * (task == k)
        sums[f"{TASK_LOSS}{k}"] = ((unit_losses.detach() * task_weights).double().sum(), task_weights.double().sum())
    return sums


def _task_of_units(unit: Unit, pairs: Pairs, response_of: Tensor) -> Tensor:
    """``[n]`` int64: the task of every pair, response, group or token."""
    if unit == "pair":
        return pairs.task_of[pairs.yw_idxs]
    if unit == "response":
        return pairs.task_of
    if unit == "group":
        return pairs.task_of.new_zeros(pairs.n_groups).index_copy(0, pairs.group_of, pairs.task_of)
    return pairs.task_of[response_of]


def drop_single_task(figures: Mapping[str, float]) -> dict[str, float]:
    """The metrics without the loss by task if there is only one task, whose loss is the total loss."""
    single = sum(name.startswith(TASK_LOSS) for name in figures) == 1
    return {name: value for name, value in figures.items() if not (single and name.startswith(TASK_LOSS))}


def accuracies(
    prompts: Sequence[str], right: Sequence[float], weights: Sequence[float], tasks: Sequence[int]
) -> dict[str, float]:
    """Accuracy of each task with its interval over prompts, if there are several tasks."""
    figures: dict[str, float] = {}
    for task in sorted(set(tasks)) if len(set(tasks)) > 1 else ():
        members = [k for k, t in enumerate(tasks) if t == task]
        weight = [weights[k] for k in members]
        if any(weight):
            interval = share(clustered([prompts[k] for k in members], [right[k] for k in members], weight))
            name = f"{TASK_ACCURACY}{task}"
            figures |= {name: interval.value, f"{name}/low": interval.ends[0], f"{name}/high": interval.ends[1]}
    return figures
