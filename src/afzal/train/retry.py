"""Out of memory during an update: the update starts again in smaller forward passes.

The items of the update stay the same, and since sums are divided by counts of the whole update, so do its loss and its
gradient. Nothing else is touched: gradients are freed, random numbers start again, and an optimiser that has started to
move weights is never retried.
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
    made: int,
    forget: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    lowered: Callable[[int], None],
    lost: Callable[[int], None],
) -> tuple[Update, R]:
    """``work(update)``, with half the tokens per forward pass each time that memory runs out; the update that went.

    The feed's layout keeps the smaller number, so that later updates and evaluations are no larger.

    Args:
        step: number of the update, from 0.
        made: steps that the optimiser has made before it.
        forget: lets go of what there is of the update's gradient.
        lowered: hears the smaller number before the update starts again.
        lost: hears it in place of that on one of several ranks, which ends. The others wait inside the pass, where
            nothing can be agreed on; all have to start again.

    Raises:
        AfzalError: memory ran out while the optimiser was moving the weights.
        RuntimeError, MemoryError: it ran out in a forward pass of one item; or in one of several ranks.
    """
    random = torch.get_rng_state()
    while True:
        found, failed = _tried(work, update)
        if failed is None:
            return update, cast(R, found)
        _begin_again(step, made, forget, optimizer)
        fewer = smaller(update, feed.layout)
        if fewer and ranks.world() > 1:
            lost(fewer)
        if not fewer or ranks.world() > 1:
            raise failed
        del failed  # its traceback holds the tensors of the pass
        feed.layout.tokens_per_forward = fewer
        lowered(fewer)
        _give_back()
        torch.set_rng_state(random)
        update = feed.update(step)


def _tried(work: Callable[[Update], R], update: Update) -> tuple[R | None, BaseException | None]:
    """What came of it, or how memory ran out."""
    try:
        return work(update), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, error


def smaller(update: Update, layout: Layout) -> int:
    """Half the positions of the largest forward pass; 0 where that is of one item already."""
    largest = max([*update.batches, *update.mismatched], key=lambda b: b.ids.numel())
    if len(largest.item_ids) == 1:
        return 0
    return max(1, min(layout.tokens_per_forward, largest.ids.numel()) // 2)


def steps_made(optimizer: torch.optim.Optimizer) -> int:
    """Steps that an optimiser has made, by its own count."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def _begin_again(step: int, made: int, forget: Callable[[], None], optimizer: torch.optim.Optimizer) -> None:
    """Undo the half of an update that was made.

    Raises:
        AfzalError: the optimiser has begun. It counts a step before it moves a weight.
    """
    if steps_made(optimizer) > made:
        raise AfzalError(
            f"out of memory while the optimizer moved the weights in update {step + 1}",
            why="some may have moved and others not",
            remedy="continue from the last checkpoint with --resume, and a smaller tokens_per_forward",
        )
    for p in [p for p, state in optimizer.state.items() if int(state.get("step", 0)) == 0]:
        del optimizer.state[p]  # it was made for this step, perhaps not wholly
    optimizer.zero_grad(set_to_none=True)
    forget()


def _give_back() -> None:
    """Return unused memory, so that it can be allocated again in larger pieces."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
