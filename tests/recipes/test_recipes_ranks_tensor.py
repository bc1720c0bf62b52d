"""Runs under tensor parallelism, alone or with sharding, equal those of one process; so do their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import run_in_shards, run_ranks
from helpers_runs import command_line, finished, model_folder, start_command
from test_recipes_ranks import FROM_REWARDS, assert_same, from_rewards, given, metrics

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "coupled": ("prefer", {"objective": "aot"}),
    "stateful": ("prefer", {"objective": "bco"}),
    "learned": ("prefer", {"objective": "rao_kupper", "learn": "nu"}),
    "unshared": ("dpo", {"sharing": "unshared"}),
    "cached": ("dpo", {"reference": "cached"}),
    "lora": ("dpo", {"lora_rank": 4, "lr": 1e-2}),
    "ia3": ("dpo", {"adapter": "ia3", "lr": 1e-2}),
    "dora": ("dpo", {"adapter": "dora", "lr": 1e-2}),
    "prefix": ("dpo", {"adapter": "prefix", "virtual_tokens": 3, "lr": 1e-2}),
    "prefix-unshared": ("kto", {"adapter": "prefix", "virtual_tokens": 3, "lr": 1e-2, "sharing": "unshared"}),
    "prompt": ("dpo", {"adapter": "prompt", "virtual_tokens": 3, "lr": 1e-2}),
    "p_tuning": ("dpo", {"adapter": "p_tuning", "virtual_tokens": 3, "lr": 1e-2}),
    "further-dora": ("dpo", {"further": "dora", "lr": 1e-2}),
    "further-prefix": ("dpo", {"further": "prefix", "lr": 1e-2}),
    "recomputed": ("dpo", {"activation_checkpointing": "full"}),
    "moving": ("dpo", {"reference_sync_steps": 2, "reference_mixup": 0.5}),
    "elsewhere": ("dpo", {"reference": "other"}),
    "rmsprop": ("dpo", {"optimizer": "rmsprop"}),
}
# the vocabulary is cut too; AdamW's eps decides how much of a gradient's rounding becomes a step
EVEN = {"vocab_size": 264}
STEADY = {"adam_eps": 1e-4}


def both(tmp_path: Path, name: str, n: int, **model: Any) -> tuple[Path, Path]:
    """The same run by one process and by ``n`` ranks, two of which share every matrix."""
    method, overrides = WAYS[name]
    model_folder(tmp_path / "model", **EVEN, **model)
    overrides = overrides | ({} if "optimizer" in overrides else STEADY)
    one = given(tmp_path, "one", method, **overrides)
    several = given(tmp_path, "several", method, **overrides, tensor_parallel=2)
    assert finished(start_command(command_line(method, one))) == 0
    assert run_ranks(command_line(method, several), n) == [0] * n
    return tmp_path / "one", tmp_path / "several"


def assert_same_files(one: Path, other: Path) -> None:
    names = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (one, other)]
    assert names[0] == names[1]
    assert (one / "config.json").read_text() == (other / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", ["dpo", "lora"])
def test_ranks_that_share_every_matrix_are_one_process(tmp_path, name, n):
    one, several = both(tmp_path, name, n)
    assert_same(one, several)
    if name == "dpo":
        assert_same_files(one, several)
        assert json.loads((several / "run.json").read_text())["runtime"]["tensor_parallel"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("dpo", "lora")])
def test_so_they_are_in_every_other_way(tmp_path, name):
    assert_same(*both(tmp_path, name, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dora", "prompt", "prefix", "further-dora"])
def test_no_rank_loads_a_whole_model(tmp_path, name):
    method, overrides = WAYS[name]
    model_folder(tmp_path / "model", **EVEN)
    values = given(tmp_path, "out", method, **overrides, tensor_parallel=2)
    codes, _ = run_in_shards(command_line(method, values), 2)
    assert codes == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FROM_REWARDS.keys() - {"grpo-experts"}))  # experts are not cut: refused
@pytest.mark.parametrize("n", [2, 4])
def test_they_learn_from_rewards_as_one_process_does(tmp_path, name, n):
    """Ranks that share every matrix draw the same answers in the same passes; different groups draw different ones."""
    model_folder(tmp_path / "model", **EVEN)
    # the ratio of a whole answer of -33 nats, whose last bit is 4e-6; an update of two answers hardly averages it
    loss = 4e-6 if name == "two-prompts" else 1e-6
    assert_same(*from_rewards(tmp_path, name, n, tensor_parallel=2), loss=loss)


@pytest.mark.slow
def test_so_they_are_with_tied_embeddings(tmp_path):
    assert_same(*both(tmp_path, "dpo", 4, tie_word_embeddings=True))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 1), (4, 2)), ((4, 2), (2, 1))])
def test_a_run_is_resumed_with_matrices_cut_otherwise(tmp_path, before, after):
    """Each stage: the number of ranks, and how many share every matrix."""
    model_folder(tmp_path / "model", **EVEN)
    asked = {"max_steps": 6, "sample_prompts": 0, **STEADY}
    whole = given(tmp_path, "whole", "dpo", **asked)
    parts = given(tmp_path, "parts", "dpo", **asked, save_every_steps=3, keep_checkpoints=5)
    assert run_ranks(command_line("dpo", whole), 1) == [0]
    for (n, members), more in ((before, []), (after, ["--resume"])):
        line = command_line("dpo", parts | {"tensor_parallel": members}, *more)
        assert run_ranks(line, n) == [0] * n
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000006")
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_bf16_is_near_one_process(tmp_path):
    model_folder(tmp_path / "model", **EVEN)
    asked = {"dtype": "bf16", "lr": 1e-3}
    one = given(tmp_path, "one", "dpo", **asked)
    several = given(tmp_path, "several", "dpo", **asked, tensor_parallel=2)
    assert run_ranks(command_line("dpo", one), 1) == [0]
    assert run_ranks(command_line("dpo", several), 4) == [0] * 4
    for x, y in zip(metrics(tmp_path / "one"), metrics(tmp_path / "several"), strict=True):
        assert y["loss"] == pytest.approx(x["loss"], abs=0.02)
