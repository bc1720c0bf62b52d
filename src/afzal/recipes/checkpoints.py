"""What a checkpoint of a run holds, written by rank 0 and read by all: the same file for any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from afzal import runs
from afzal.recipes.setup import Setup, reference_weights
from afzal.train import checkpoint, ranks
from afzal.train.loop import State
from afzal.train.method import parameters_by_name
from afzal.train.optim import load_optimizer_tensors, optimizer_tensors
from afzal.train.pieces import full, like
from afzal.train.progress import Reporter
from afzal.train.rollouts import Rollouts


def save(run: runs.Run, setup: Setup, state: State, folder: Path, keep: int) -> None:
    """Write a checkpoint of the run into ``folder`` and remove all but the newest ``keep``."""
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    tensors = {
        "model": full({name: p.detach() for name, p in parameters.items()}),
        "optimizer": full(optimizer_tensors(setup.optimizer, parameters)),
        "random": {"torch": torch.get_rng_state()},
    }
    if moved := reference_weights(setup):
        tensors["reference"] = full(moved)
    if isinstance(setup.feed, Rollouts) and (rollout := setup.feed.tensors()):
        tensors["rollout"] = rollout

    def write() -> None:
        checkpoint.save(folder, state.step, tensors, {**asdict(state), "metrics_bytes": run.metrics_bytes()})
        checkpoint.prune(folder, keep)
        run.update(step=state.step)

    ranks.led(write)


def restore(run: runs.Run, setup: Setup, folder: Path | None = None) -> State:
    """The newest sound checkpoint's weights, optimiser and generators; the start, when there is none yet."""
    path = _newest(folder or run.checkpoints)
    if path is None:
        run.truncate_metrics(0)
        return State()
    tensors, found = checkpoint.load(path)
    run.truncate_metrics(found.pop("metrics_bytes"))
    parameters = parameters_by_name(setup.weights.masters, setup.method)
    load_weights(parameters, tensors["model"])
    setup.weights.publish()
    load_weights(reference_weights(setup), tensors.get("reference", {}))
    load_optimizer_tensors(setup.optimizer, parameters, tensors["optimizer"])
    if isinstance(setup.feed, Rollouts):
        setup.feed.restore(tensors.get("rollout", {}))
    torch.set_rng_state(tensors["random"]["torch"])
    return State(**found)


def best(run: runs.Run, setup: Setup) -> bool:
    """Take up the weights that were kept as the best ones; False when none were."""
    path = _newest(run.path / "best")
    if path is None:
        return False
    load_weights(parameters_by_name(setup.weights.masters, setup.method), checkpoint.load(path)[0]["model"])
    setup.weights.publish()
    return True


def load_weights(into: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite weights, whole ones or pieces, with whole ones of the same names."""
    with torch.no_grad():
        for name, parameter in into.items():
            parameter.copy_(like(parameter, tensors[name]))


def _newest(folder: Path) -> Path | None:
    """As rank 0 sees it: a file system may show other ranks an older state."""
    found: list[str | None] = [None]

    def look() -> None:
        path = checkpoint.newest(folder, lambda note: Reporter(0).say(f"warning: {note}"))
        found[0] = None if path is None else path.name

    ranks.led(look)
    name = ranks.agreed(found[0])
    return None if name is None else folder / name
