"""Several ranks give the same results as one: losses, weights, held-out figures, checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_ranks import assert_read_once, run_in_shards, run_ranks, start_ranks
from helpers_runs import command_line, finished, model_folder, pair_file, settings, start_command
from helpers_tokenizers import byte_tokenizer
from safetensors.torch import load_file

from afzal.model.adapters import Adapter, add_adapter
from afzal.model.load import load_model
from afzal.model.reward import choose_pad, load_reward_model, save_reward_model

# 37 pairs in updates of 7: 2 and 4 ranks never have equal shares, and the last update of an epoch is smaller
SMALL = {"batch_size": 7, "epochs": 1.0, "lr": 3e-4, "tokens_per_forward": 130, "save_every_steps": None}
# AdamW divides by the size of the gradient, so that its eps decides how much of a gradient's rounding becomes a step
STEADY = {"lr": 1e-2, "adam_eps": 1e-4}
ONLY_POLICY = ("sample_prompts", "sample_tokens")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "ensemble": ("reward", {"heads": 3}),
    "reward-lora": ("reward", {"lora_rank": 4, "heads": 2}),
    "reward-padded": ("reward", {}),  # its tokenizer gets a padding token, and the embedding a row for it
    "reward-padded-lora": ("reward", {"lora_rank": 4, "dtype": "fp32"}),
    "coupled": ("prefer", {"objective": "aot"}),
    "stateful": ("prefer", {"objective": "bco"}),
    "learned": ("prefer", {"objective": "rao_kupper", "learn": "nu"}),
    "unshared": ("dpo", {"sharing": "unshared"}),
    "cached": ("dpo", {"reference": "cached"}),
    "cached-lora": ("dpo", {"reference": "cached", "lora_rank": 4}),
    "cached-unshared": ("kto", {"reference": "cached", "sharing": "unshared"}),
    "lora": ("dpo", {"lora_rank": 4}),
    "ia3": ("dpo", {"adapter": "ia3", "lr": 1e-2}),
    "dora": ("dpo", {"adapter": "dora", "lr": 1e-2}),
    "prompt": ("dpo", {"adapter": "prompt", "virtual_tokens": 3, "lr": 1e-2}),
    "prefix": ("dpo", {"adapter": "prefix", "virtual_tokens": 3, "lr": 1e-2}),
    "p_tuning": ("dpo", {"adapter": "p_tuning", "virtual_tokens": 3, "lr": 1e-2}),
    "prefix-unshared": ("kto", {"adapter": "prefix", "virtual_tokens": 3, "lr": 1e-2, "sharing": "unshared"}),
    "recomputed": ("dpo", {}),
    "compiled": ("dpo", {}),
    "moving": ("dpo", {"reference_sync_steps": 2, "reference_mixup": 0.5}),
    "tied": ("dpo", {}),
    "experts": ("dpo", {}),
    "begun": ("dpo", {"adapter_from": "lora", "lr": 1e-2}),
    "begun-dora": ("dpo", {"adapter_from": "dora", **STEADY}),
    "begun-prefix": ("dpo", {"adapter_from": "prefix", **STEADY}),
    "further-dora": ("dpo", {"further": "dora", **STEADY}),
    "further-ia3": ("kto", {"further": "ia3", **STEADY}),
    "further-prompt": ("dpo", {"further": "prompt", **STEADY}),
    "further-prefix": ("sft", {"further": "prefix", **STEADY}),
    "further-p_tuning": ("dpo", {"further": "p_tuning", **STEADY}),
    "from-adapter": ("dpo", {"reference": "adapter", "lora_rank": 4, **STEADY}),
    "elsewhere": ("dpo", {"reference": "other"}),
    "elsewhere-lora": ("kto", {"reference": "other", "lora_rank": 4, "lr": 1e-2}),
}
BROUGHT: tuple[str, dict[str, Any]] = ("dpo", {"further": "brought", "lr": 1e-2})
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "experts": {"kind": "MixtralConfig", "num_local_experts": 4},
    "grpo-experts": {"kind": "MixtralConfig", "num_local_experts": 4},
}
FLAGS = {"recomputed": ["gradient_checkpointing=true"], "compiled": ["--compile"]}


def given(tmp_path: Path, out: str, method: str, **overrides: Any) -> dict[str, Any]:
    pair_file(tmp_path / "pairs.jsonl", 46)
    values = settings(tmp_path, tmp_path / out, **(SMALL | overrides))
    if not Path(values.get("adapter_from", ".")).is_dir():  # a kind, not a folder
        values["adapter_from"] = str(adapter_folder(tmp_path, values["adapter_from"]))
    if "further" in values:
        values["model"] = str(adapter_folder(tmp_path, values.pop("further")))
    if values.get("reference") == "other":
        values["reference"] = str(narrower(tmp_path / "model", tmp_path / "other"))
    if values.get("reference") == "adapter":
        values["reference"] = str(adapter_folder(tmp_path, "dora"))
    return {k: v for k, v in values.items() if method != "reward" or k not in ONLY_POLICY}


def adapter_folder(tmp_path: Path, kind: Any) -> Path:
    """The folder of an adapter on ``tmp_path / "model"`` that is not the identity; ``brought`` includes a weight of the
    model itself."""
    out, also = tmp_path / kind, ["lm_head"] if kind == "brought" else []
    chosen = Adapter("lora" if also else kind, 4, 8.0, virtual_tokens=3)
    made = add_adapter(load_model(str(tmp_path / "model")), chosen, trained_in_full=also)
    torch.manual_seed(1)
    for p in made.parameters():
        if p.requires_grad:
            p.data.add_(0.02 * torch.randn(p.shape))
    made.save_pretrained(out)
    byte_tokenizer().save_pretrained(out)
    return out


def narrower(model: Path, out: Path) -> Path:
    """A model of other shapes and weights with the same tokenizer."""
    if not out.exists():
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        model_folder(out, vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("*model.safetensors")
    return load_file(path)


def gap(a: Path, b: Path) -> float:
    """The largest difference between two weights."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def tolerance(name: str, figures: dict[str, Any]) -> float:
    """Absolute tolerance of a figure compared with one rank.

    Log-probs of answers are about -60 nats here, and the last bit of such a float32 is 4e-6 nats: with beta 0.1 a
    margin is known to 4e-7. At the start, where policy and reference are equal, the sign of a margin that should be 0
    is chance (with a cached reference, whose log-probs were taken in other batches), and so is the accuracy. After a
    few updates of an adapter margins are about 0.01, their correlation with lengths is known to 6e-6, and the end of
    its interval over eight pairs to 2e-4.
    """
    if name.startswith("rewards/accuracies") and abs(figures.get("rewards/margins", 1.0)) < 1e-6:
        return 1.0
    return 3e-4 if name.startswith("rewards/length_correlation") else 2e-5


def assert_same(one: Path, other: Path, loss: float = 1e-6) -> None:
    """Every figure of both runs, and their weights.

    Args:
        loss: the largest difference of a loss.
    """
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a.keys() == b.keys()
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        for name in sorted(k for k in a if k != "kind" and not k.startswith("seconds")):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=tolerance(name, a)), (a["step"], name)
        if "loss" in a:
            assert abs(a["loss"] - b["loss"]) <= loss
    assert gap(one, other) <= 1e-6


def prepare_model(tmp_path: Path, name: str) -> None:
    """The model of a case that does not use the usual one."""
    if name in MODELS:
        model_folder(tmp_path / "model", **MODELS[name])
    if name.startswith("reward-padded"):
        tokenizer = byte_tokenizer(bos=None, pad="<eos>")
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
        model_folder(tmp_path / "model", vocab_size=len(tokenizer), **ends)
        tokenizer.save_pretrained(tmp_path / "model")


def both(tmp_path: Path, name: str, n: int, **more_settings: Any) -> tuple[Path, Path]:
    method, overrides = METHODS[name]
    overrides = overrides | more_settings
    prepare_model(tmp_path, name)
    one = given(tmp_path, "one", method, **overrides)
    several = given(tmp_path, "several", method, **overrides)
    more = FLAGS.get(name, [])
    assert finished(start_command(command_line(method, one, *more))) == 0
    assert run_ranks(command_line(method, several, *more), n) == [0] * n
    return tmp_path / "one", tmp_path / "several"


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_two_ranks_are_one(tmp_path, name):
    assert_same(*both(tmp_path, name, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dpo", "kto", "reward")])
def test_two_ranks_are_one_in_every_other_way(tmp_path, name):
    assert_same(*both(tmp_path, name, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto", "sft", "reward", "coupled"])
def test_four_ranks_are_one(tmp_path, name):
    assert_same(*both(tmp_path, name, 4, epochs=2.0))


ONLINE: dict[str, Any] = {
    "batch_size": 5,
    "epochs": None,
    "iterations": 3,
    "sample_tokens": 6,
    "eval_prompts": 3,
    "sample_prompts": None,
    "lr": 1e-3,
    "adam_eps": 1e-4,
}
REWARD = "def odd(prompt, answer):\n    return sum(map(ord, answer)) % 17 / 8\n"
FROM_REWARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"n": 3}),
    "ppo": ("ppo", {}),
    "rloo": ("rloo", {"n": 3}),
    "reinforce": ("reinforce", {}),
    "ppo-shared": ("ppo", {"value": "shared"}),
    "ppo-lora": ("ppo", {"lora_rank": 4}),
    "ppo-from-reward": ("ppo", {"value_model": "scorer"}),
    "ppo-dora": ("ppo", {"adapter": "dora", "lora_rank": 4}),
    "grpo-lora": ("grpo", {"n": 3, "lora_rank": 4}),
    "grpo-experts": ("grpo", {"n": 3, "lora_rank": 4}),
    "rloo-scored": ("rloo", {"n": 3, "reward": "scorer"}),
    "rloo-judged": ("rloo", {"n": 3, "reward": "judge.yaml"}),
    "grpo-by-policy": ("grpo", {"n": 3, "reward": "policy.yaml"}),
    "grpo-elsewhere": ("grpo", {"n": 3, "reference": "other"}),
    "two-prompts": ("rloo", {"n": 2, "batch_size": 2, "minibatches": 2}),
}


def from_rewards(
    tmp_path: Path, name: str, n: int, always: Mapping[str, Any] | None = None, **more: Any
) -> tuple[Path, Path]:
    """The same run by one and by ``n`` ranks; all of them draw, reward and learn from answers.

    Args:
        always: settings of both.
        more: settings of the run by several.
    """
    method, _ = FROM_REWARDS[name]
    prepare_model(tmp_path, name)
    one, several = (
        rewarded(tmp_path, out, name, **(always or {}), **own) for out, own in (("one", {}), ("several", more))
    )
    assert finished(start_command(command_line(method, one))) == 0
    assert run_ranks(command_line(method, several), n) == [0] * n
    return tmp_path / "one", tmp_path / "several"


def rewarded(tmp_path: Path, out: str, name: str, **more: Any) -> dict[str, Any]:
    """Settings of a run of ``FROM_REWARDS``, and the function and models that they name."""
    method, asked = FROM_REWARDS[name]
    (tmp_path / "rewards.py").write_text(REWARD)
    values = given(tmp_path, out, method, **(ONLINE | {"reward": f"{tmp_path / 'rewards.py'}:odd"} | asked | more))
    for setting in {"value_model", "reward"} & {name for name, value in values.items() if value == "scorer"}:
        values[setting] = str(tmp_path / "scorer")
        reward_model(tmp_path / "model", tmp_path / "scorer")
    if values["reward"] in ("judge.yaml", "policy.yaml"):
        values["reward"] = str(judge_file(tmp_path, values["reward"]))
    return values


def judge_file(folder: Path, name: str) -> Path:
    """A judge that scores each answer alone: a reward model, or a policy and its reference."""
    if name == "judge.yaml":
        reward_model(folder / "model", folder / "scorer")
        named = f"kind: reward\nmodel: {folder / 'scorer'}\n"
    else:
        vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
        for seed, model in enumerate(("judge-policy", "judge-reference")):
            model_folder(folder / model, vocab_size=vocabulary, hidden_size=16 * (1 + seed))
        named = f"kind: policy\nmodel: {folder / 'judge-policy'}\nreference: {folder / 'judge-reference'}\nbeta: 2.0\n"
    (folder / name).write_text(named)
    return folder / name


def reward_model(model: Path, out: Path) -> None:
    """A reward model on the trunk of a policy, with a shift of its scores."""
    if out.exists():
        return
    made, tokenizer = load_reward_model(str(model), seed=3), byte_tokenizer()
    choose_pad(made, tokenizer, set())
    save_reward_model(made, tokenizer, out, shift=0.25)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("reward", 0, marks=pytest.mark.slow),
        ("ppo-from-reward", 0),
        pytest.param("rloo-scored", 0, marks=pytest.mark.slow),
        pytest.param("ppo", 0, marks=pytest.mark.slow),
        pytest.param("ppo-lora", 0, marks=pytest.mark.slow),
        pytest.param("reward-lora", 0, marks=pytest.mark.slow),
        pytest.param("reward-padded", 0, marks=pytest.mark.slow),
        pytest.param("reward-padded-lora", 0, marks=pytest.mark.slow),
        pytest.param("experts", 0, marks=pytest.mark.slow),
        pytest.param("begun", 0, marks=pytest.mark.slow),
        pytest.param("dora", 0, marks=pytest.mark.slow),
        pytest.param("cached", 0, marks=pytest.mark.slow),
        pytest.param("elsewhere", 0, marks=pytest.mark.slow),
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in ("prompt", "prefix", "p_tuning")),
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in METHODS if name.startswith(("begun-", "further-"))),
        pytest.param("from-adapter", 0, marks=pytest.mark.slow),
        pytest.param("brought", 70, marks=pytest.mark.slow),  # the control
    ],
)
def test_no_rank_loads_a_whole_model(tmp_path, name, code):
    method, asked = METHODS.get(name) or FROM_REWARDS.get(name) or BROUGHT
    prepare_model(tmp_path, name)
    if name not in FROM_REWARDS:
        values = given(tmp_path, "out", method, **asked)
    else:
        values = rewarded(tmp_path, "out", name, iterations=1)
    codes, _ = run_in_shards(command_line(method, values), 2)
    assert codes == [code, code]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rloo-scored", "rloo-judged", "grpo-by-policy"])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_each_rank_reads_its_shards_of_what_judges_the_answers(tmp_path, name, tensor_parallel):
    model_folder(tmp_path / "model", vocab_size=264)
    more = {"iterations": 1, "eval_prompts": 1, "tensor_parallel": tensor_parallel}
    method, values = FROM_REWARDS[name][0], rewarded(tmp_path, "out", name, **more)
    codes, read = run_in_shards(command_line(method, values), 2)
    assert codes == [0, 0]
    for judge in ("judge-policy", "judge-reference") if name == "grpo-by-policy" else ("scorer",):
        assert_read_once(tmp_path / judge, read)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{}, {"lora_rank": 4, "dtype": "bf16"}], ids=str)
def test_log_probs_cached_by_pieces_serve_one_process(tmp_path, asked):
    shared = {"reference": "cached", "reference_cache": str(tmp_path / "cache"), "max_steps": 1, "sample_prompts": 0}
    several, one = (given(tmp_path, out, "dpo", **asked, **shared) for out in ("several", "one"))
    assert run_ranks(command_line("dpo", several), 2) == [0, 0]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 2, "one of each rank"
    assert finished(start_command(command_line("dpo", one))) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files


def test_two_ranks_learn_from_rewards_as_one_does(tmp_path):
    assert_same(*from_rewards(tmp_path, "ppo", 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FROM_REWARDS if name != "ppo"])
def test_two_ranks_learn_from_rewards_in_every_other_way(tmp_path, name):
    assert_same(*from_rewards(tmp_path, name, 2))


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, before, after):
    """The checkpoints of two ranks and of one are interchangeable, and a resumed run ends like an uninterrupted one."""
    whole = given(tmp_path, "whole", "dpo", max_steps=6, sample_prompts=0)
    parts = given(tmp_path, "parts", "dpo", max_steps=6, sample_prompts=0, save_every_steps=3, keep_checkpoints=5)
    line = command_line("dpo", parts)
    assert run_ranks(command_line("dpo", whole), 1) == [0]
    assert run_ranks(line, before) == [0] * before
    kept = tmp_path / "parts" / "checkpoints"
    shutil.rmtree(kept / "step-00000006")
    assert run_ranks([*line, "--resume"], after) == [0] * after
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_is_not_finite_stops_every_rank(tmp_path):
    line = command_line("dpo", given(tmp_path, "out", "dpo", lr=1e30, eval_every_steps=100, sample_prompts=0))
    assert run_ranks(line, 2) == [2, 2]
    said = json.loads((tmp_path / "out" / "run.json").read_text())["stop_reason"]
    assert "is not finite in update 2" in said
    assert "rows " in said
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_nothing_is_lost(tmp_path):
    whole = given(tmp_path, "whole", "dpo", epochs=15.0, sample_prompts=0, eval_every_steps=1000)
    parts = given(tmp_path, "parts", "dpo", epochs=15.0, sample_prompts=0, eval_every_steps=1000)
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    line = command_line("dpo", parts)
    processes = start_ranks(line, 2)
    wait_for_step(tmp_path / "parts", 5)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [finished(process) for process in processes] == [143, 143]
    assert 0 < json.loads((tmp_path / "parts" / "run.json").read_text())["step"] < 90
    assert run_ranks([*line, "--resume"], 2) == [0, 0]
    assert gap(tmp_path / "whole", tmp_path / "parts") == 0


@pytest.mark.slow
def test_bf16_starts_at_the_reference_and_follows_one_rank(tmp_path):
    """Gradients of micro-batches are summed in another order and format, so the runs are close but not equal."""
    one, several = (given(tmp_path, out, "dpo", dtype="bf16", lr=1e-3) for out in ("one", "several"))
    assert run_ranks(command_line("dpo", one), 1) == [0]
    assert run_ranks(command_line("dpo", several), 2) == [0, 0]
    a, b = (metrics(tmp_path / out) for out in ("one", "several"))
    assert b[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for x, y in zip(a, b, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], abs=0.02)
    assert b[-1]["loss"] < 0.6
    assert {w.dtype for w in weights(tmp_path / "several").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "ppo-lora", "ppo-from-reward"])
def test_value_models_in_bf16_follow_those_of_one_rank(tmp_path, name):
    one, several = from_rewards(tmp_path, name, 2, {"dtype": "bf16"})
    for a, b in zip(metrics(one), metrics(several), strict=True):
        for figure in {"loss/value", "value/mean"} & a.keys():
            assert b[figure] == pytest.approx(a[figure], rel=0.05, abs=0.02), a["step"]
    assert any("loss/value" in line for line in metrics(one))
    assert {w.dtype for w in weights(several).values()} == {torch.float32}


@pytest.mark.slow
def test_bf16_with_an_adapter(tmp_path):
    line = command_line("dpo", given(tmp_path, "out", "dpo", dtype="bf16", lr=1e-2, lora_rank=4))
    assert run_ranks(line, 2) == [0, 0]
    records = metrics(tmp_path / "out")
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert records[-1]["loss"] < 0.6


def wait_for_step(out: Path, step: int) -> None:
    for _ in range(6000):
        time.sleep(0.05)
        if (out / "metrics.jsonl").exists() and any(m["step"] >= step for m in metrics(out) if m["kind"] == "train"):
            return
    raise AssertionError(f"{out} has not come to step {step}")


@pytest.mark.slow
def test_torchrun_brings_a_killed_rank_back_and_the_run_ends_with_the_same_bits(tmp_path):
    """Uses torchrun itself, which does the restart; the rank is killed when it reaches a step, not by the clock."""
    many = {"epochs": 8.0, "sample_prompts": 0, "eval_every_steps": 1000, "save_every_steps": 2, "keep_checkpoints": 3}
    whole, killed = (given(tmp_path, out, "dpo", **many) for out in ("whole", "killed"))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, "--max-restarts", "3", "-m", "afzal", *command_line("dpo", killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AFZAL_TEST": str(tmp_path)}
    with (tmp_path / "said").open("w") as said, subprocess.Popen(line, env=environment, stderr=said) as started:
        for step in (7, 20):
            wait_for_step(tmp_path / "killed", step)
            os.kill(rank_of(str(tmp_path), 1), signal.SIGKILL)
        started.wait(300)
    assert started.returncode == 0, (tmp_path / "said").read_text()
    assert gap(tmp_path / "whole", tmp_path / "killed") == 0
    assert [m["step"] for m in metrics(tmp_path / "killed")] == [m["step"] for m in metrics(tmp_path / "whole")]


def rank_of(mark: str, rank: int) -> int:
    """The process of this rank among those with the mark in their environment."""
    wanted = {f"AFZAL_TEST={mark}".encode(), f"RANK={rank}".encode()}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted <= set(path.read_bytes().split(b"\0")):
                return int(path.parent.name)
    raise AssertionError(f"no rank {rank}")
