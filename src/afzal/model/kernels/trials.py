"""Nothing fast is trusted before it has agreed with something plain: one trial each, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_passed_over: dict[str, None] = {}


def verdict(what: str, trial: Callable[[], float], limit: float) -> str:
    """Why ``what`` is not to be trusted; empty if its error in the trial, a share of the size, is within the limit."""
    try:
        # in a thread of its own: a layer that is being recorded or checkpointed must not see the trial among its work
        with ThreadPoolExecutor(1, "trial") as apart:
            worst = apart.submit(trial).result()
    except Exception as error:  # a compiler can end in any error, and there is another way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    else:
        reason = "" if worst <= limit else f"off by {worst:.2g} of the size of the result, more than {limit:g}"
    if reason:
        _passed_over[f"{what} is not used: {reason}"] = None
    return reason


def notes() -> tuple[str, ...]:
    """A sentence for everything that was skipped because it did not do what it should."""
    return tuple(_passed_over)
