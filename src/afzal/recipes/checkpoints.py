"""What a checkpoint of a run holds. Several ranks write it together, and any number of ranks reads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from afzal import runs
from afzal.recipes import parallel
from afzal.recipes.setup import Setup, reference_weights
from afzal.train import checkpoint
from afzal.train.loop import State
from afzal.train.method import parameters_by_name
from afzal.train.optim import optimizer_slots, optimizer_tensors
from afzal.train.rollouts import Rollouts


def save(run: runs.Run, setup: Setup, state: State, folder: Path, keep: int) -> None:
    """Write a checkpoint of the run into ``folder`` and remove all but the newest ``keep``."""
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    tensors = {
        "model": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer_tensors(setup.optimizer, parameters),
        "random": {"torch": torch.get_rng_state()},
    }
    if moved := reference_weights(setup):
        tensors["reference"] = moved
    if isinstance(setup.feed, Rollouts) and (rollout := setup.feed.tensors()):
        tensors["rollout"] = rollout
    checkpoint.save(folder, state.step, tensors, {**asdict(state), "metrics_bytes": run.metrics_bytes()})
    checkpoint.prune(folder, keep)
    run.update(step=state.step)


def restore(run: runs.Run, setup: Setup, folder: Path | None = None) -> State:
    """The newest sound checkpoint's weights, optimiser and generators; the start, when there is none yet."""
    path = _newest(folder or run.checkpoints)
    if path is None:
        run.truncate_metrics(0)
        return State()
    found = checkpoint.state_of(path)
    run.truncate_metrics(found.pop("metrics_bytes"))
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    checkpoint.fill(path, "model", parameters)
    setup.weights.publish()
    checkpoint.fill(path, "reference", reference_weights(setup))
    slots = optimizer_slots(setup.optimizer, parameters, checkpoint.shapes(path, "optimizer"))
    checkpoint.fill(path, "optimizer", slots)
    if isinstance(setup.feed, Rollouts):
        setup.feed.restore(checkpoint.read(path, "rollout"))
    torch.set_rng_state(checkpoint.read(path, "random")["torch"])
    return State(**found)


def best(run: runs.Run, setup: Setup) -> bool:
    """Take up the weights that were kept as the best ones; False when none were."""
    path = _newest(run.path / "best")
    if path is None:
        return False
    checkpoint.fill(path, "model", parameters_by_name(setup.weights.masters, setup.method))
    setup.weights.publish()
    return True


def _newest(folder: Path) -> Path | None:
    return checkpoint.newest(folder, lambda note: parallel.reporter(0, 0).say(f"warning: {note}"))
