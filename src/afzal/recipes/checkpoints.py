"""Save and restore a run's checkpoints. Several ranks write one together; any number of ranks can read it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from afzal import runs
from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.model.adapters import is_adapted
from afzal.recipes import parallel
from afzal.recipes.memory import STATE_BYTES
from afzal.recipes.outputs import kept_checkpoints
from afzal.recipes.setup import Setup, reference_weights
from afzal.train import checkpoint, ranks
from afzal.train.loop import State
from afzal.train.method import parameters_by_name, publish
from afzal.train.optim import optimizer_slots, optimizer_tensors
from afzal.train.rollouts import Rollouts


def save(run: runs.Run, setup: Setup, state: State, folder: Path, keep: int) -> None:
    """Write a checkpoint of the run into ``folder`` and remove those no longer needed."""
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    tensors = {
        "model": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer_tensors(setup.optimizer, parameters),
        "random": {"torch": torch.get_rng_state()},
    }
    if reference := reference_weights(setup):
        tensors["reference"] = reference
    if isinstance(setup.feed, Rollouts) and (rollout := setup.feed.tensors()):
        tensors["rollout"] = rollout
    checkpoint.save(folder, state.step, tensors, {**asdict(state), "metrics_bytes": run.metrics_bytes()})
    save_every, last = setup.settings.save_every_steps, setup.settings.steps
    checkpoint.prune(folder, keep, lambda step: not save_every or step % save_every == 0 or step == last)
    run.update(step=state.step)


def restore(run: runs.Run, setup: Setup, folder: Path | None = None) -> State:
    """Restore weights, optimiser and generators from the newest sound checkpoint; start afresh if there is none."""
    path = _newest(folder or run.checkpoints)
    if path is None:
        run.truncate_metrics(0)
        return State()
    state = checkpoint.state_of(path)
    run.truncate_metrics(state.pop("metrics_bytes"))
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    checkpoint.fill(path, "model", parameters)
    publish(setup.weights, setup.method)
    checkpoint.fill(path, "reference", reference_weights(setup))
    slots = optimizer_slots(setup.optimizer, parameters, checkpoint.shapes(path, "optimizer"))
    checkpoint.fill(path, "optimizer", slots)
    if isinstance(setup.feed, Rollouts):
        setup.feed.restore(checkpoint.read(path, "rollout"))
    torch.set_rng_state(checkpoint.read(path, "random")["torch"])
    return State(**state)


def best(run: runs.Run, setup: Setup) -> bool:
    """Load the best weights, if any were kept, and return whether they were."""
    path = _newest(run.path / "best")
    if path is None:
        return False
    checkpoint.fill(path, "model", parameters_by_name(setup.weights.masters, setup.method))
    publish(setup.weights, setup.method)
    return True


def _newest(folder: Path) -> Path | None:
    return checkpoint.newest(folder, lambda note: parallel.reporter(0, 0).say(f"warning: {note}"))


def require_room(config: TrainConfig, run: runs.Run, setup: Setup) -> None:
    """Make sure, before the first update, that the disk has room for future checkpoints and the finished model.

    Raises:
        AfzalError: on all ranks, if it has not; states what is needed and what is free.
    """
    ranks.led(lambda: _require_room(config, run, bytes_to_write(config, setup)))


def bytes_to_write(config: TrainConfig, setup: Setup) -> dict[str, int]:
    """Bytes that the run's folder holds at most, by kind; rollouts, logs and samples are not counted.

    While a checkpoint is written the earlier ones still exist, so one more than ``keep_checkpoints`` counts.
    """
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    numbers = sum(p.numel() for p in parameters.values())
    checkpoint_bytes = (
        sum(p.numel() * p.element_size() for p in parameters.values()) + STATE_BYTES[config.optimizer] * numbers
    )
    checkpoint_bytes += sum(p.numel() * p.element_size() for p in reference_weights(setup).values())
    several = config.save_every_minutes > 0 or setup.settings.save_every_steps > 0
    model = setup.model
    merged = config.scorer is not None or not is_adapted(model)
    saved = [p for p in model.parameters() if p.requires_grad or merged]
    copies = 2 if ranks.world() > 1 else 1  # it is gathered on disk before it is written
    return {
        "checkpoints": checkpoint_bytes * (kept_checkpoints(config) + 1 if several else 1),
        "best checkpoint": 2 * checkpoint_bytes if setup.settings.patience else 0,
        "model": copies * setup.save_dtype.itemsize * sum(p.numel() for p in saved),
    }


def _require_room(config: TrainConfig, run: runs.Run, needed: Mapping[str, int]) -> None:
    reusable = sum(
        f.stat().st_size for part in ("checkpoints", "best") for f in (run.path / part).rglob("*") if f.is_file()
    )
    free = shutil.disk_usage(run.path).free
    if sum(needed.values()) <= free + reusable:
        return
    terms = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in needed.items() if size)
    fewer = ["keep_checkpoints=1"] if kept_checkpoints(config) > 1 else []
    fewer += ["save_every_minutes=0"] if config.save_every_minutes and config.save_every_steps is None else []
    raise AfzalError(
        f"the run will need {sum(needed.values()) / 1e9:.3g} GB of disk, and {(free + reusable) / 1e9:.3g} GB are free",
        where=str(run.path),
        why=f"in GB: {terms}",
        remedy=", or ".join(["free some space", "use --out on another disk", *fewer]),
    )
