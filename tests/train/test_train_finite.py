"""NaN and infinity, wherever they come from: the run stops in that update, before the weights move, and names it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import settings as run_settings

from afzal import objectives, runs
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.train import checkpoint
from afzal.train.feed import Feed, Layout, Update
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable

STEPS = 5


@dataclass
class Scene:
    """A DPO run that is sound until something in it is broken."""

    model: Any
    method: Method
    feed: Feed
    before: dict[str, torch.Tensor]


class Tampered:
    """A feed that breaks something when update ``at`` is requested, and records the weights at that moment."""

    def __init__(self, scene: Scene, at: int, hurt: Callable[[Scene, Update], Update]) -> None:
        self.scene, self.at, self.hurt = scene, at, hurt
        self.updates_per_epoch = scene.feed.updates_per_epoch

    def update(self, step: int) -> Update:
        update = self.scene.feed.update(step)
        if step == self.at:
            update = self.hurt(self.scene, update)
            self.scene.before = {k: v.clone() for k, v in self.scene.model.state_dict().items()}
        return update


def in_loss(value: float) -> Callable[[Scene, Update], Update]:
    """Break the loss of one pair, whatever the log-probs are."""

    def hurt(scene: Scene, update: Update) -> Update:
        (term,) = scene.method.terms
        sound = term.objective.fn

        def broken(*args: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
            losses, rewards = sound(*args, **keywords)
            return torch.cat([losses[:1] * 0 + value, losses[1:]]), rewards

        broken_term = replace(term, objective=replace(term.objective, fn=broken))
        object.__setattr__(scene.method, "terms", (broken_term,))
        return update

    return hurt


def in_gradient(value: float) -> Callable[[Scene, Update], Update]:
    """Break the gradient of one weight; the loss stays finite."""

    def hurt(scene: Scene, update: Update) -> Update:
        def broken(gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient[0, 0] = value
            return gradient

        scene.model.lm_head.weight.register_hook(broken)
        return update

    return hurt


def in_weights(value: float) -> Callable[[Scene, Update], Update]:
    """Break one weight of the policy, as faulty memory or an earlier overflow would."""

    def hurt(scene: Scene, update: Update) -> Update:
        with torch.no_grad():
            scene.model.model.layers[0].mlp.up_proj.weight[0, 0] = value
        return update

    return hurt


def in_data(value: float) -> Callable[[Scene, Update], Update]:
    """Break the weight that the data gives to one pair."""

    def hurt(scene: Scene, update: Update) -> Update:
        first = copy.copy(update.batches[0])
        rows = first.preferences.clone()
        rows[0, 3] = value
        return replace(update, batches=[replace(first, preferences=rows), *update.batches[1:]])

    return hurt


PLACES = {"loss": in_loss, "gradient": in_gradient, "weights": in_weights, "data": in_data}
CASES = list(product(PLACES, (math.nan, math.inf), range(STEPS)))


def scene() -> Scene:
    model = make("llama")
    choose_sharing(model)
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
    return Scene(model, method, Feed(random_trees(12), (), 4, 0, Layout("shared", 80)), {})


def run(world: Scene, feed: Any, folder: Path) -> State:
    """Train, with a checkpoint after every update."""
    state = State()

    def save(state: State) -> None:
        checkpoint.save(folder, state.step, {"model": dict(world.model.named_parameters())}, {})

    optimizer = make_optimizer(trainable(world.model).values())
    settings = Settings(steps=STEPS, lr=1e-3, save_every_steps=1)
    fit(world.model, world.method, feed, optimizer, settings, hooks=Hooks(save=save), state=state)
    return state


def test_the_control_runs_to_its_end(tmp_path: Path):
    world = scene()
    assert run(world, Tampered(world, STEPS, in_loss(math.nan)), tmp_path).step == STEPS


def test_there_are_forty_cases():
    assert len(CASES) == 40


@pytest.mark.parametrize(("place", "value", "at"), CASES)
def test_it_stops_in_the_same_update_before_the_weights_move(place: str, value: float, at: int, tmp_path: Path):
    world = scene()
    with pytest.raises(AfzalError, match=rf"is not finite in update {at + 1} ") as caught:
        run(world, Tampered(world, at, PLACES[place](value)), tmp_path)
    named = set(caught.value.where.removeprefix("rows ").split(", "))
    assert named == set(world.feed.update(at).item_ids)
    for name, weight in world.model.state_dict().items():
        assert torch.equal(weight.view(torch.int32), world.before[name].view(torch.int32)), name
    newest = checkpoint.newest(tmp_path, pytest.fail)
    assert (None if newest is None else checkpoint.step_of(newest)) == (at or None)
    if newest is not None:
        saved = checkpoint.load(newest)[0]["model"]
        assert all(bool(torch.isfinite(w).all()) for w in saved.values())


def test_a_run_that_diverges_ends_with_exit_code_2_and_a_sound_checkpoint(tmp_path: Path, capsys):
    """A step size of 1e30 makes the second forward pass overflow; no fault is injected."""
    given = run_settings(tmp_path, tmp_path / "run", lr=1e30, eval_fraction=0.0, max_steps=6)
    given |= {"warmup": 0, "lr_schedule": "constant"}
    given.pop("eval_every_steps")
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "dpo", *flags]) == 2
    said = capsys.readouterr().err
    assert "is not finite in update 2" in said
    assert "pairs.jsonl:" in said
    assert "Traceback" not in said
    run_folder = runs.open_run(tmp_path / "run")
    assert run_folder.facts()["status"] == "failed"
    newest = checkpoint.newest(run_folder.checkpoints, pytest.fail)
    assert newest is not None
    assert checkpoint.step_of(newest) == 1
    assert all(bool(torch.isfinite(w).all()) for w in checkpoint.load(newest)[0]["model"].values())
    assert not (run_folder.path / "model.safetensors").exists()
