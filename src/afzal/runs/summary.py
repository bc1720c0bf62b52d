"""Summaries of runs, for tables and pages that list many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.runs.folder import Run


def summary(run: Run, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name, method, status, progress and key figures of a run; None for unknown values.

    ``train_loss`` is from the last update; ``loss``, ``accuracy``, ``reward`` and ``kl`` (nats per answer) are from the
    last evaluation, on ``of`` items. ``seconds`` is how long the run has worked.

    Args:
        facts: the content of ``run.json``, if it has been read already.

    Raises:
        AfzalError: ``run.json`` cannot be read.
    """
    facts = run.facts() if facts is None else facts
    held_out, trained = run.latest("eval", facts), run.latest("train", facts)
    items, seconds = _finite(held_out.get("n")), _finite(facts.get("seconds"))
    return {
        "name": run.name,
        "path": str(run.path),
        "method": facts.get("method"),
        "status": run.status(facts),
        "step": _latest_step(facts.get("step"), trained.get("step")),
        "steps": facts.get("steps"),
        "train_loss": _finite(trained.get("loss")),
        "loss": _finite(held_out.get("loss")),
        "accuracy": _finite(held_out.get("rewards/accuracies")),
        "reward": _finite(held_out.get("reward")),
        "kl": _finite(held_out.get("kl")),
        "of": None if items is None else int(items),
        "started": facts.get("started"),
        "seconds": seconds if seconds is not None else _finite(trained.get("seconds")),
    }


def _latest_step(saved: Any, logged: Any) -> Any:
    """The later of the step in ``run.json``, which is that of the last checkpoint, and the step in the log."""
    steps = [step for step in (saved, logged) if _finite(step) is not None]
    return int(max(steps)) if steps else saved


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < float("inf") else None
