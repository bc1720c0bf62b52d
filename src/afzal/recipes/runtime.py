"""How a run computes, beyond its settings: what ``auto`` resolved to, the number of ranks, the versions installed.

What changes numbers beyond their last bits is refused when a run is resumed; the rest is reported.
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
from afzal.recipes.setup import Setup, dtype_of
from afzal.tokens import rendering
from afzal.train import ranks

_FIXED = {
    "dtype": "the number format that dtype=auto comes to",
    "sharing": "how sharing=auto lays out prompts",
    "reference": "the log-probs in the reference cache",
}
_SAID = {"device": "device", "ranks": "ranks", "tensor_parallel": "tensor_parallel", "threads": "threads per rank"}


@contextmanager
def fixed_date(facts: Path, resume: bool) -> Iterator[str]:
    """Inside the block chat templates see one date (``strftime_now``): of a run that is resumed, the one at which it
    began; of a new one, that of the program's start, or of the run around it.

    Args:
        facts: the JSON file that states it as ``template_date``, in ISO 8601; what is yielded is to be written there.
    """
    known = runs.read_json(facts).get("template_date") if resume and facts.is_file() else None
    before = rendering.date()
    said = ranks.agreed(known or before.isoformat(timespec="seconds"))
    rendering.set_date(datetime.fromisoformat(said))
    try:
        yield said
    finally:
        rendering.set_date(before)


def runtime_of(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """What decides a run's numbers besides its settings and inputs, for ``run.json``."""
    device = setup.feed.layout.device
    found: dict[str, Any] = {"dtype": dtype_of(config, device), "sharing": setup.feed.layout.sharing}
    if isinstance(setup.reference, Cached):
        found["reference"] = table_hash(setup.reference.table)
    found |= {"device": device.type, "ranks": ranks.world(), "tensor_parallel": ranks.tensor()}
    return found | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def refuse_runtime(run: runs.Run, now: Mapping[str, Any]) -> None:
    """Raise AfzalError where a resumed run would compute other numbers than it did until then."""
    before = run.facts().get("runtime", {})
    changed = [
        f"{what}: {before[k]} -> {now.get(k)}" for k, what in _FIXED.items() if before.get(k) not in (None, now.get(k))
    ]
    if changed:
        raise AfzalError(
            f"{run.path} cannot be resumed the way it was started",
            why="; ".join(changed),
            remedy="resume it on the machine, and with the files, that it was started with, or start a new run",
        )


def other_machine(run: runs.Run, now: Mapping[str, Any]) -> list[str]:
    """What is different from the run's beginning and may change the last bits of numbers, in a line; none when nothing
    is."""
    facts = run.facts()
    before, versions = facts.get("runtime", {}), facts.get("versions", {})
    found = [
        f"{what} {before[k]} -> {now[k]}" for k, what in _SAID.items() if k in now and before.get(k, now[k]) != now[k]
    ]
    installed = runs.environment()["versions"]
    found += [f"{k} {versions[k]} -> {v}" for k, v in installed.items() if versions.get(k, v) != v]
    if not found:
        return []
    return [f"note: changed since the run started: {', '.join(found)}; numbers may differ in their last bits"]
