"""Passes over items before encoding: each returns the items it keeps and the drops.

To add a pass, write a function ``items -> (items, drops)`` and list it in :func:`of_source` or :func:`of_part`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from afzal import quality
from afzal.config import TrainConfig
from afzal.drops import Drop, with_stage
from afzal.errors import AfzalError
from afzal.prepare.demonstrations import Samples, with_samples
from afzal.records import Item, axes_of

Apply = Callable[[Sequence[Item]], tuple[list[Item], list[Drop]]]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass, and the ``stage`` under which ``dropped.jsonl`` lists its drops."""

    stage: str
    apply: Apply


def apply_passes(items: Sequence[Item], passes: Sequence[Pass]) -> tuple[Sequence[Item], list[Drop]]:
    """Apply the passes in order; return the remaining items and all drops."""
    dropped: list[Drop] = []
    for step in passes:
        items, lost = step.apply(items)
        dropped += with_stage(step.stage, lost)
    return items, dropped


def of_source(config: TrainConfig, source: str, columns: Sequence[str] = ()) -> list[Pass]:
    """The passes for every source, before some of its items are held out.

    Args:
        columns: the columns that functions ask for; rows may differ in them.
    """
    passes = [] if config.axis is None else [Pass("read", partial(on_axis, axis=config.axis, source=source))]
    return [*passes, Pass("audit", partial(quality.clean, columns=columns))] if config.clean else passes


def of_part(samples: Samples) -> list[Pass]:
    """The passes for demonstrations, applied to the training and the held-out part separately."""
    return [Pass("samples", partial(with_samples, samples=samples))]


def on_axis(items: Sequence[Item], axis: str, source: str) -> tuple[list[Item], list[Drop]]:
    """The items with an opinion on one axis, reduced to those opinions.

    Raises:
        AfzalError: there is none; names the existing axes.
    """
    on_this_axis = [replace(item, votes=tuple(v for v in item.votes if v.axis == axis)) for item in items]
    if any(item.votes for item in on_this_axis):
        drops = [Drop(item.where, item.id, "not_on_axis", axis) for item in on_this_axis if not item.votes]
        return [item for item in on_this_axis if item.votes], drops
    axes = axes_of(items)
    remedy = f"axis={' or axis='.join(axes)}" if axes else "leave axis out: no opinion here names one"
    raise AfzalError(f"no opinion is on the axis {axis!r}", where=source, remedy=remedy)
