"""Retry an update in smaller forward passes when memory runs out.

The items of the update stay the same, and since sums are divided by counts of the full update, so do its loss and
gradient. Nothing else changes: gradients are freed, random numbers restart, and the update is not retried once the
optimiser has started to change weights.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar, cast

import torch

from afzal.errors import AfzalError
from afzal.model.memory import is_out_of_memory
from afzal.train import ranks
from afzal.train.feed import Layout, Update, Updates

R = TypeVar("R")


def within_memory(
    work: Callable[[Update], R],
    update: Update,
    feed: Updates,
    *,
    step: int,
    steps_before: int,
    forget: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    lowered: Callable[[int], None],
    restart_with: Callable[[int], None],
) -> tuple[Update, R]:
    """Run ``work(update)``, halving the tokens per forward pass each time memory runs out.

    Returns the update that succeeded, and its result. The feed's layout keeps the smaller number, so that later updates
    and evaluations are no larger.

    Args:
        step: number of the update, from 0.
        steps_before: steps that the optimiser made before it.
        forget: drops the update's gradients.
        lowered: called with the smaller number before the update starts again.
        restart_with: called instead with several ranks, on the rank that fails. The others wait inside the pass,
            where the ranks cannot agree on anything; all have to restart.

    Raises:
        AfzalError: memory ran out while the optimiser was changing the weights.
        RuntimeError, MemoryError: it ran out in a forward pass of a single item, or on one of several ranks.
    """
    random = torch.get_rng_state()
    while True:
        result, failed = _tried(work, update)
        if failed is None:
            return update, cast(R, result)
        _undo_update(step, steps_before, forget, optimizer)
        fewer = smaller(update, feed.layout)
        if fewer and ranks.world() > 1:
            restart_with(fewer)
        if not fewer or ranks.world() > 1:
            raise failed
        del failed  # its traceback keeps the tensors of the pass alive
        feed.layout.tokens_per_forward = fewer
        lowered(fewer)
        _give_back()
        torch.set_rng_state(random)
        update = feed.update(step)


def _tried(work: Callable[[Update], R], update: Update) -> tuple[R | None, BaseException | None]:
    """The result, or the out-of-memory error."""
    try:
        return work(update), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, error


def smaller(update: Update, layout: Layout) -> int:
    """Half the positions of the largest forward pass; 0 if that pass has a single item."""
    largest = max([*update.batches, *update.mismatched], key=lambda b: b.ids.numel())
    if len(largest.item_ids) == 1:
        return 0
    return max(1, min(layout.tokens_per_forward, largest.ids.numel()) // 2)


def steps_made(optimizer: torch.optim.Optimizer) -> int:
    """Steps that an optimiser has made, by its own counter."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def _undo_update(step: int, steps_before: int, forget: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
    """Undo an incomplete update.

    Raises:
        AfzalError: the optimiser has started its step, which it counts before it changes a weight.
    """
    if steps_made(optimizer) > steps_before:
        raise AfzalError(
            f"out of memory while the optimizer was changing the weights in update {step + 1}",
            why="some may have changed and others not",
            remedy="continue from the last checkpoint with --resume and a smaller tokens_per_forward",
        )
    for p in [p for p, state in optimizer.state.items() if int(state.get("step", 0)) == 0]:
        del optimizer.state[p]  # created for this step, perhaps incompletely
    optimizer.zero_grad(set_to_none=True)
    forget()


def _give_back() -> None:
    """Release unused memory, so that it can be allocated again in larger blocks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
