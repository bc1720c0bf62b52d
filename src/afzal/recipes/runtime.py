"""The conditions of a run beyond its settings: what ``auto`` resolved to, number of ranks, installed versions.

On resuming, changes that affect more than the last bits of numbers are refused; others are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from afzal import runs
from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.hashes import table_hash
from afzal.model.reference import Cached
from afzal.recipes.setup import Setup
from afzal.tokens import rendering
from afzal.train import ranks

_FIXED = {
    "dtype": "the number format that dtype=auto resolves to",
    "sharing": "how sharing=auto lays out prompts",
    "reference": "the log-probs in the reference cache",
}
_SAID = {"device": "device", "ranks": "ranks", "tensor_parallel": "tensor_parallel", "threads": "threads per rank"}


@contextmanager
def fixed_date(facts: Path, resume: bool) -> Iterator[str]:
    """Give chat templates a fixed date (``strftime_now``) inside the block: for a resumed run its original start; for a
    new one the start of the program, or of the enclosing run.

    Args:
        facts: the JSON file with the ``template_date`` in ISO 8601, to which the caller writes the yielded date.
    """
    recorded = runs.read_json(facts).get("template_date") if resume and facts.is_file() else None
    before = rendering.date()
    date = ranks.agreed(recorded or before.isoformat(timespec="seconds"))
    rendering.set_date(datetime.fromisoformat(date))
    try:
        yield date
    finally:
        rendering.set_date(before)


def runtime_of(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """Conditions that affect a run's numbers, other than settings and inputs, for ``run.json``."""
    device = setup.feed.layout.device
    facts: dict[str, Any] = {"dtype": setup.number_format, "sharing": setup.feed.layout.sharing}
    if isinstance(setup.reference, Cached):
        facts["reference"] = table_hash(setup.reference.table)
    facts |= {"device": device.type, "ranks": ranks.world(), "tensor_parallel": ranks.tensor()}
    return facts | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def refuse_runtime(run: runs.Run, current: Mapping[str, Any]) -> None:
    """Raise AfzalError if a resumed run would compute different numbers than before."""
    before = run.facts().get("runtime", {})
    changed = [
        f"{what}: {before[k]} -> {current.get(k)}"
        for k, what in _FIXED.items()
        if before.get(k) not in (None, current.get(k))
    ]
    if changed:
        raise AfzalError(
            f"{run.path} cannot be resumed the way it was started",
            why="; ".join(changed),
            remedy="resume it on the same machine and with the same files, or start a new run",
        )


def other_machine(run: runs.Run, current: Mapping[str, Any]) -> list[str]:
    """A line on differences from the start of the run that may change the last bits of numbers; empty if there are
    none."""
    facts = run.facts()
    before, versions = facts.get("runtime", {}), facts.get("versions", {})
    changes = [
        f"{what} {before[k]} -> {current[k]}"
        for k, what in _SAID.items()
        if k in current and before.get(k, current[k]) != current[k]
    ]
    installed = runs.environment()["versions"]
    changes += [f"{k} {versions[k]} -> {v}" for k, v in installed.items() if versions.get(k, v) != v]
    if not changes:
        return []
    return [f"note: changed since the run started: {', '.join(changes)}; numbers may differ in their last bits"]
