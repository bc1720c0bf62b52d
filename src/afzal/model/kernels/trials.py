"""Trials: no fast path is used before it has agreed with a plain one. Runs each trial once and collects the results."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_passed_over: dict[str, None] = {}


def verdict(what: str, trial: Callable[[], float], limit: float) -> str:
    """Why ``what`` is not to be trusted; empty if its relative error in the trial is within the limit."""
    try:
        # in a separate thread: a layer that is being recorded or checkpointed must not see the trial's work
        with ThreadPoolExecutor(1, "trial") as executor:
            worst = executor.submit(trial).result()
    except Exception as error:  # a compiler can raise any error, and there is a fallback
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    else:
        reason = "" if worst <= limit else f"off by {worst:.2g} of the size of the result, more than {limit:g}"
    if reason:
        _passed_over[f"{what} is not used: {reason}"] = None
    return reason


def notes() -> tuple[str, ...]:
    """One sentence for each fast path that was skipped because it failed its trial."""
    return tuple(_passed_over)
