"""Held-out figures by task, each task by its number: the mean loss, and of pairs the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from afzal.objectives import Pairs
from afzal.objectives.metrics import Tally
from afzal.objectives.registry import Unit
from afzal.stats.intervals import clustered, share

TASK_ACCURACY = "tasks/accuracies/"
"""Begins the name of a task's held-out accuracy; its number follows, then nothing, ``/low`` or ``/high``."""

TASK_LOSS = "tasks/losses/"
"""Begins the name of a task's held-out loss, the mean over its units in the unit of the whole loss."""


def losses(unit: Unit, each: Tensor, weights: Tensor, pairs: Pairs, response_of: Tensor) -> Tally:
    """Sum of weighted losses and sum of weights of each task that a batch has.

    Args:
        each, weights: ``[n]`` losses of the units of a batch, and what they weigh in the mean.
        response_of: ``[M]`` int64, the response of each scored token.
    """
    task = _task_of_units(unit, pairs, response_of)
    found: Tally = {}
    for k in task.unique().tolist():
        own = weights * (task == k)
        found[f"{TASK_LOSS}{k}"] = ((each.detach() * own).double().sum(), own.double().sum())
    return found


def _task_of_units(unit: Unit, pairs: Pairs, response_of: Tensor) -> Tensor:
    """``[n]`` int64: the task of every pair, response, group or token."""
    if unit == "pair":
        return pairs.task_of[pairs.yw_idxs]
    if unit == "response":
        return pairs.task_of
    if unit == "group":
        return pairs.task_of.new_zeros(pairs.n_groups).index_copy(0, pairs.group_of, pairs.task_of)
    return pairs.task_of[response_of]


def without_a_single(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures, without the loss of a task that is the only one: it is the whole loss."""
    single = sum(name.startswith(TASK_LOSS) for name in figures) == 1
    return {name: value for name, value in figures.items() if not (single and name.startswith(TASK_LOSS))}


def accuracies(
    prompts: Sequence[str], right: Sequence[float], weights: Sequence[float], tasks: Sequence[int]
) -> dict[str, float]:
    """Accuracy with its interval over prompts for each task of the pairs, where there are several."""
    found: dict[str, float] = {}
    for task in sorted(set(tasks)) if len(set(tasks)) > 1 else ():
        own = [k for k, t in enumerate(tasks) if t == task]
        weight = [weights[k] for k in own]
        if any(weight):
            known = share(clustered([prompts[k] for k in own], [right[k] for k in own], weight))
            name = f"{TASK_ACCURACY}{task}"
            found |= {name: known.value, f"{name}/low": known.ends[0], f"{name}/high": known.ends[1]}
    return found
