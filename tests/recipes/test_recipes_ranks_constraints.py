"""Constraints and adapters over several ranks: the results and multiplier of one process, also after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers_models import make, random_trees
from helpers_ranks import run_ranks, start_group, start_ranks
from helpers_runs import command_line, finished, model_folder, start_command
from test_recipes_ranks import assert_same, given, metrics, wait_for_step

from afzal import objectives
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.train import ranks
from afzal.train.constraints import Constraint
from afzal.train.feed import Feed, Layout
from afzal.train.method import Method
from afzal.train.update import accumulate

MASS = {"constraint": "unsafe_mass", "constraint_tokens": "e", "constraint_bound": 0.002}
DUAL = {"constraint_dual_lr": 5000.0}
PREFIX = {"adapter": "prefix", "virtual_tokens": 3, "lr": 1e-2}
# AdamW's eps decides how much of a gradient's rounding becomes a step
STEADY = {"adam_eps": 1e-4, "objective": "dpo"}
OWN = """
def spread(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch):
    return (pi_logps - 1.1 * ref_logps).square().mean()
"""


def unsafe(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"Q{i}?", "completion": " bad words"} for i in range(4)]
    (folder / "unsafe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"constraint": "unsafe_likelihood", "constraint_data": str(folder / "unsafe.jsonl")}


def black_box(folder: Path) -> dict[str, Any]:
    (folder / "score.py").write_text("def odd(prompt, answer):\n    return sum(map(ord, answer)) % 17 / 8\n")
    score = {"constraint_score": f"{folder / 'score.py'}:odd", "sample_tokens": 3}
    return {"constraint": "black_box", "constraint_bound": 0.1, **score}


def own(folder: Path) -> dict[str, Any]:
    (folder / "cost.py").write_text(OWN)
    return {"constraint": f"{folder / 'cost.py'}:spread"}


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    ways = {
        "dual": lambda: {**MASS, **DUAL, **PREFIX},
        "penalty": lambda: {**MASS, "constraint_weight": 500.0},
        "coupled": lambda: {**MASS, **DUAL, "objective": "aot"},
        "likelihood": lambda: {**unsafe(folder), "constraint_weight": 50.0},
        "black_box": lambda: {**black_box(folder), "constraint_dual_lr": 2.0},
        "black_box-penalty": lambda: {**black_box(folder), "constraint_weight": 2.0},
        "own": lambda: {**own(folder), "constraint_dual_lr": 0.5},
    }
    return STEADY | ways[name]()


def both(tmp_path: Path, name: str, n: int, **more: Any) -> tuple[Path, Path]:
    model_folder(tmp_path / "model", vocab_size=264)
    asked = settings_of(name, tmp_path)
    one, several = given(tmp_path, "one", "prefer", **asked), given(tmp_path, "several", "prefer", **asked, **more)
    assert finished(start_command(command_line("prefer", one))) == 0
    assert run_ranks(command_line("prefer", several), n) == [0] * n
    return tmp_path / "one", tmp_path / "several"


def test_two_ranks_hold_a_constraint_with_virtual_tokens_as_one_does(tmp_path):
    one, several = both(tmp_path, "dual", 2)
    assert_same(one, several)
    multipliers = [m["constraint/unsafe_mass/multiplier"] for m in metrics(several) if m["kind"] == "train"]
    assert max(multipliers) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["penalty", "coupled", "likelihood", "black_box", "black_box-penalty", "own"])
def test_so_they_do_in_every_other_way(tmp_path, name):
    assert_same(*both(tmp_path, name, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["penalty", "likelihood", "black_box"])
def test_so_do_ranks_that_share_every_matrix(tmp_path, name):
    assert_same(*both(tmp_path, name, 4, tensor_parallel=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompt", "p_tuning"])
def test_virtual_tokens_beside_matrices_that_are_cut(tmp_path, kind):
    model_folder(tmp_path / "model", vocab_size=264)
    asked = {"adapter": kind, "virtual_tokens": 3, "lr": 1e-2, "adam_eps": 1e-4}
    one, several = (given(tmp_path, out, "dpo", **asked) for out in ("one", "several"))
    assert finished(start_command(command_line("dpo", one))) == 0
    assert run_ranks(command_line("dpo", several | {"tensor_parallel": 2}), 4) == [0] * 4
    assert_same(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prefix", "p_tuning", "dora"])
def test_an_adapter_is_trained_on_by_two_ranks(tmp_path, kind):
    """Its reference is a sharded full copy, and every rank loads it with its base."""
    first = given(tmp_path, "first", "dpo", adapter=kind, lr=1e-2)
    assert finished(start_command(command_line("dpo", first))) == 0
    asked = {"model": str(tmp_path / "first"), "lr": 1e-2, "adam_eps": 1e-4}
    one, several = (given(tmp_path, out, "dpo", **asked) for out in ("one", "several"))
    assert finished(start_command(command_line("dpo", one))) == 0
    assert run_ranks(command_line("dpo", several), 2) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
def test_an_adapter_is_held_near_the_one_it_began_as_by_two_ranks(tmp_path):
    first = given(tmp_path, "first", "dpo", lora_rank=4, lr=1e-2)
    assert finished(start_command(command_line("dpo", first))) == 0
    asked = {"adapter_from": str(tmp_path / "first"), "prior": 2.0, "lr": 1e-2, "adam_eps": 1e-4}
    one, several = (given(tmp_path, out, "dpo", **asked) for out in ("one", "several"))
    assert finished(start_command(command_line("dpo", one))) == 0
    assert run_ranks(command_line("dpo", several), 2) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "several")
    assert [m["distance"] for m in metrics(tmp_path / "several") if m["kind"] == "train"][-1] > 0.01


def _multipliers(folder: str, environment: dict[str, str]) -> None:
    """The multiplier that every rank carries after an update in which each has different items."""
    import torch

    os.environ.update(environment)
    with ranks.joined(torch.device("cpu")):
        layout = Layout("shared", 60, rank=ranks.rank(), world=ranks.world())
        model = make("llama")
        choose_sharing(model)
        held = Constraint("c", lambda m, pi, *_: pi.mean(), bound=-70.0, dual_lr=0.1)
        method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
        method = Method(method.terms, method.reference, constraints=(held,))
        update = Feed(random_trees(7), (), 7, 0, layout).update(0)
        after = accumulate(model, method, update, method.start()).carried
        said = ranks.gather(
            {"multiplier": after[held.multiplier_key], "tokens": sum(b.n_tokens for b in update.batches)}
        )
        if ranks.leads():
            Path(folder, f"{ranks.world()}.json").write_text(json.dumps(said))


def test_every_rank_carries_the_same_multiplier(tmp_path):
    for n in (1, 2):
        started = start_group(_multipliers, n, str(tmp_path))
        assert [finished(process) for process in started] == [0] * n
    (one,), (a, b) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert a["multiplier"] == b["multiplier"] == pytest.approx(one["multiplier"], rel=1e-6)
    assert a["multiplier"] > 0
    assert a["tokens"] != b["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("dual", ((2, 1), (1, 1))),
        ("dual", ((1, 1), (2, 1))),
        ("black_box", ((2, 1), (1, 1))),
        ("penalty", ((4, 2), (2, 1))),
    ],
)
def test_a_killed_run_is_resumed_by_other_ranks(tmp_path, name, stages):
    """Each stage: the number of ranks, and how many share every matrix. The first is killed after its third update."""
    model_folder(tmp_path / "model", vocab_size=264)
    asked = settings_of(name, tmp_path) | {"epochs": 3.0, "sample_prompts": 0, "save_every_steps": 1}
    whole, parts = (given(tmp_path, out, "prefer", **asked) for out in ("whole", "parts"))
    assert run_ranks(command_line("prefer", whole), 1) == [0]
    (n, members), (then, others) = stages
    processes = start_ranks(command_line("prefer", parts | {"tensor_parallel": members}), n)
    wait_for_step(tmp_path / "parts", 3)
    for process in processes:
        process.kill()
    assert [finished(process) for process in processes] == [-9] * n
    assert metrics(tmp_path / "parts")[-1]["step"] < metrics(tmp_path / "whole")[-1]["step"]
    again = command_line("prefer", parts | {"tensor_parallel": others}, "--resume")
    assert run_ranks(again, then) == [0] * then
    assert_same(tmp_path / "whole", tmp_path / "parts")
