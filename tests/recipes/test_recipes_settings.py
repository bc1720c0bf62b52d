"""Every setting of a command has an effect, or is refused: changed alone, it changes what is passed down or comes out.

Each kind of settings is tested separately, since a setting that one command reads may be ignored by another.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import model_folder, one_thread, pair_file, settings

from afzal import config, recipes
from afzal.cli import main
from afzal.config import ExportConfig, GenerateConfig, IterateConfig, PlanConfig, ScoreConfig, Setting
from afzal.config.methods.prefer import PreferConfig
from afzal.errors import AfzalError
from afzal.generate.run import generate
from afzal.iterate.stages import training
from afzal.rewards.score import score

Case = tuple[Any, dict[str, Any]]
"""Another value of a setting, and what else must be given for it to have an effect."""

REFUSED = "refused"
VERBS = {"generate": generate, "score": score, "export": recipes.export}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter on it, a reward model, pairs under other names and their responses."""
    path = tmp_path_factory.mktemp("settings")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl", 6)
    rows = [json.loads(line) for line in (path / "pairs.jsonl").read_text().splitlines()]
    renamed = [{"prompt": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows]
    (path / "named.jsonl").write_text("".join(json.dumps(r) + "\n" for r in renamed))
    quick = {"max_steps": 1, "save_every_steps": None, "eval_fraction": 0.0, "eval_every_steps": None}
    with one_thread():
        given = settings(path, path / "adapter", **quick, lora_rank=2, lr=0.5)
        recipes.train(config.make("dpo", **given))
        plain = {k: v for k, v in settings(path, path / "judge", **quick).items() if not k.startswith("sample_")}
        recipes.train(config.make("reward", **plain))
    return path


def build(kind: Any, given: dict[str, Any]) -> Any:
    return config.build(kind, [Setting(k, v) for k, v in given.items()])


# --- afzal iterate: settings that reach a round's training ---------------------------------------------------------

ROUND: dict[str, Case] = {
    "model": ("N", {}),
    "max_tokens": (512, {}),
    "eos_token": ("<s>", {}),
    "chat_template": ("chat.jinja", {}),
    "max_new_tokens": (99, {}),
    "dtype": ("bf16", {}),
    "device": ("cpu", {}),
    "sharing": ("unshared", {}),
    "compile": (True, {}),
    "adapter": ("dora", {}),
    "lora_rank": (4, {}),
    "lora_alpha": (3.0, {"lora_rank": 4}),
    "lora_targets": (["q_proj"], {"lora_rank": 4}),
    "activation_checkpointing": ("full", {}),
    "memory_gb": (3.0, {}),
    "offload": ("optimizer", {}),
    "tensor_parallel": (2, {}),
    "batch_size": (3, {}),
    "tokens_per_forward": (99, {}),
    "epochs": (2.0, {}),
    "max_steps": (7, {}),
    "lr": (1e-3, {}),
    "lr_schedule": ("cosine", {}),
    "warmup": (3.0, {}),
    "optimizer": ("rmsprop", {}),
    "weight_decay": (0.1, {}),
    "max_grad_norm": (2.0, {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.9, {}),
    "adam_eps": (1e-6, {}),
    "seed": (7, {}),
    "log_every_steps": (3, {}),
    "save_every_steps": (3, {}),
    "save_every_minutes": (3.0, {}),
    "keep_checkpoints": (3, {}),
    "save_dtype": ("bf16", {}),
    "report_to": (["tensorboard"], {}),
    "objective": ("ipo", {}),
    "objective_arg": ({"beta": 0.3}, {}),
    "eval_fraction": (0.3, {}),
    "eval_every_steps": (3, {}),
    "reference": ("previous", {}),
}
NOT_OF_TRAINING = {
    *("preset", "rounds", "prompts", "prompts_per_round", "reuse_prompts", "columns", "data_format"),
    *("n", "min_new_tokens", "temperature", "top_p", "top_k", "generator"),
    *("reward", "watch_reward", "pairing", "min_margin", "require_eos", "rso_beta", "rso_accepted", "accumulate"),
    *("kl_budget", "patience", "min_gain", "held_out", "held_out_prompts", "held_out_samples", "measure_every", "out"),
    *("on_parting", "cost", "cost_bound", "dual_lr", "dual_start"),
}


def passed_down(**given: Any) -> list[dict[str, Any]]:
    """The settings of the first and the second round's training."""
    made = build(IterateConfig, {"model": "M", "prompts": "P", "reward": "m:f", "out": "O"} | given)
    starts = (made.model, "O/rounds/001/run")
    return [
        training(made, number, start, "pairs", "out").model_dump() | {"start": start}
        for number, start in enumerate(starts, 1)
    ]


def test_every_setting_of_rounds_is_either_one_of_training_or_not():
    assert set(IterateConfig.model_fields) == set(ROUND) | NOT_OF_TRAINING
    assert not set(ROUND) & NOT_OF_TRAINING


@pytest.mark.parametrize("key", ROUND)
def test_a_setting_of_training_reaches_the_training_of_a_round(key: str):
    value, needed = ROUND[key]
    before, after = passed_down(**needed), passed_down(**needed, **{key: value})
    changed = {name for a, b in zip(before, after, strict=True) for name in a if a[name] != b[name]}
    assert changed, f"{key} has no effect"
    # each round splits by its own seed
    if key in PreferConfig.model_fields and key not in ("model", "reference", "seed"):
        assert after[0][key] == value


def test_later_rounds_train_on_the_adapter_that_the_first_one_made():
    first, second = passed_down(adapter="dora", lora_rank=4)
    assert (first["adapter"], first["lora_rank"]) == ("dora", 4)
    assert (second["adapter"], second["lora_rank"]) == (None, None)
    assert second["lr"] == first["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(("adapter", "lr"), [("dora", 1e-5), ("ia3", 1e-4), ("prompt", 1e-3)])
def test_adapters_of_rounds_have_the_defaults_of_training(adapter: str, lr: float):
    assert passed_down(adapter=adapter)[0]["lr"] == pytest.approx(lr)
    with pytest.raises(AfzalError, match="lora_alpha has no effect"):
        passed_down(lora_alpha=3.0)


def test_a_setting_that_training_gains_reaches_rounds_by_itself():
    """The settings that a round's training takes over are not listed anywhere."""
    shared = IterateConfig.model_fields.keys() & PreferConfig.model_fields.keys()
    assert shared <= set(ROUND) | {"columns", "data_format", "out"}


# --- afzal plan: its output -----------------------------------------------------------------------------------------

PLAN: dict[str, Case] = {
    "model": ("qwen2.5-7b", {}),
    "method": ("sft", {}),
    "data": ("pairs.jsonl", {"tokenizer": "model"}),
    "columns": (
        {"prompt": "prompt", "chosen": "good", "rejected": "bad"},
        {"data": "named.jsonl", "tokenizer": "model"},
    ),
    "tokenizer": ("nowhere/at/all", {"data": "pairs.jsonl", "tokenizer": "model"}),
    "max_tokens": (8, {"data": "pairs.jsonl", "tokenizer": "model"}),
    "prompt_tokens": (100, {}),
    "response_tokens": (100, {}),
    "responses": (4, {}),
    "items": (5000, {}),
    "epochs": (2.0, {}),
    "batch_size": (32, {}),
    "tokens_per_forward": (4096, {}),
    "minibatches": (2, {"method": "rloo", "model": "llama-3.2-1b"}),
    "ppo_epochs": (2, {"method": "rloo", "model": "llama-3.2-1b"}),
    "reward_model": ("function", {"method": "rloo", "model": "llama-3.2-1b"}),
    "value": ("shared", {"method": "ppo", "model": "llama-3.2-1b"}),
    "sharing": ("unshared", {}),
    "reference": ("none", {}),
    "lora_rank": (8, {}),
    "frozen_weights": ("nf4", {"lora_rank": 8}),
    "dtype": ("fp32", {}),
    "optimizer": ("rmsprop", {}),
    "checkpointing": ("full", {}),
    "hardware": ("h200", {}),
    "memory_gb": (60.0, {}),
    "tflops": (100.0, {}),
    "bandwidth_gbs": (100.0, {}),
    "intra_gbs": (1.0, {"gpus": 8, "nodes": 1}),
    "inter_gbs": (1.0, {"gpus": 1, "nodes": 8}),
    "nodes": (2, {}),
    "gpus": (2, {}),
    "shards": (8, {"gpus": 8, "nodes": 2}),
    "tensor": (2, {"gpus": 8, "nodes": 1}),
    "mfu": (0.5, {}),
    "link": (0.2, {"gpus": 8, "nodes": 1}),
    "price": (2.0, {}),
}


def planned(folder: Path, given: dict[str, Any], capsys: Any) -> str:
    """The printed plan, or the refusal with its reason."""
    arguments, method = [], given.get("method", "dpo")
    for key, value in ({"model": "llama-3.2-3b"} | given).items():
        if key == "method":
            continue
        if key in ("data", "tokenizer") and (folder / str(value)).exists():
            value = folder / str(value)
        text = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        arguments += [f"--{key.replace('_', '-')}", text]
    code = main(["plan", method, *arguments])
    said = capsys.readouterr()
    return said.out if code == 0 else f"{REFUSED}: {said.err}"


def test_every_setting_of_plan_is_asked():
    assert set(PLAN) == set(PlanConfig.model_fields)


@pytest.mark.parametrize("key", PLAN)
def test_a_setting_of_plan_changes_the_plan(key: str, folder: Path, capsys: Any):
    value, needed = PLAN[key]
    assert planned(folder, needed, capsys) != planned(folder, {**needed, key: value}, capsys)


# --- afzal generate, score and export: their output -------------------------------------------------------------------

GENERATE: dict[str, Case] = {
    "model": ("adapter", {}),
    "prompt": ("other", {}),
    "prompts": ("pairs.jsonl", {"prompt": None}),
    "n": (2, {}),
    "max_new_tokens": (9, {}),
    "min_new_tokens": (6, {"seed": 4, "max_new_tokens": 200}),
    "temperature": (0.2, {}),
    "top_p": (0.1, {}),
    "top_k": (1, {}),
    "seed": (1, {}),
    "batch_size": (1, {"n": 4}),
    "dtype": ("bf16", {}),
    "engine": ("stock", {}),
    "out": ("answers.jsonl", {}),
}
SCORE: dict[str, Case] = {
    "model": ("other", {}),
    "policy": ("adapter", {"model": None, "reference": "model"}),
    "reference": ("adapter", {"model": None, "policy": "adapter"}),
    "beta": (0.7, {"model": None, "policy": "adapter", "reference": "model"}),
    "data": ("one.jsonl", {}),
    "columns": ({"prompt": "prompt", "chosen": "good", "rejected": "bad"}, {"data": "named.jsonl"}),
    "data_format": ("ultrafeedback", {}),
    "max_tokens": (14, {}),
    "tokens_per_forward": (20, {}),
    "device": ("cuda:7", {}),
    "out": ("scores.jsonl", {}),
}
EXPORT: dict[str, Case] = {
    "model": ("model", {}),
    "out": ("elsewhere", {}),
    "data": ("pairs.jsonl", {}),
    "rows": (1, {"data": "pairs.jsonl"}),
    "dtype": ("bf16", {}),
    "tolerance": (1e-30, {}),
    "max_tokens": (14, {"data": "pairs.jsonl"}),
    "device": ("cuda:7", {}),
    "push_to_hub": ("me/tiny", {}),
    "hub_public": (True, {}),
    "ollama": (True, {}),
}
KINDS: dict[str, tuple[Any, dict[str, Case], dict[str, Any]]] = {
    "generate": (GenerateConfig, GENERATE, {"model": "model", "prompt": "Why", "max_new_tokens": 5}),
    "score": (ScoreConfig, SCORE, {"model": "judge", "data": "pairs.jsonl", "device": "cpu"}),
    "export": (ExportConfig, EXPORT, {"model": "adapter", "out": "merged", "device": "cpu"}),
}


def outcome(command: str, given: dict[str, Any], folder: Path, place: Path, capsys: Any, monkeypatch: Any) -> Any:
    """What a command prints, writes and passes on; or its refusal."""
    kind = KINDS[command][0]
    known = {p.name for p in folder.iterdir()}
    full = {k: str(folder / v) if isinstance(v, str) and v in known else v for k, v in given.items() if v is not None}
    if "out" in full:
        full["out"] = str(place / full["out"])
    passes: list[Any] = []
    for module, name, only in (
        ("afzal.generate.sample", "decode_shared", "places"),
        ("afzal.train.feed", "pack", ""),
        ("afzal.generate.run", "sample", "decoding"),
        ("afzal.generate.run", "load_model", "dtype"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, _counted(module, name, passes, only))
    try:
        with one_thread():
            result = VERBS[command](build(kind, full))
    except AfzalError as error:
        return REFUSED, str(error)
    finally:
        monkeypatch.undo()
    written = {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
    return str(result).replace(str(place), ""), capsys.readouterr().out, written, passes


def _counted(module: str, name: str, into: list[Any], only: str) -> Any:
    """Wrap the function to record the lengths of its results, or one of its arguments."""
    real = getattr(importlib.import_module(module), name)

    def call(*args: Any, **named: Any) -> Any:
        result = real(*args, **named)
        into.append(named.get(only) if only else [len(part) for part in result])
        return result

    return call


@pytest.mark.parametrize("command", KINDS)
def test_every_setting_is_asked(command: str):
    kind, cases, _ = KINDS[command]
    assert set(cases) == set(kind.model_fields)


@pytest.mark.parametrize(("command", "key"), [(c, k) for c, (_, cases, _) in KINDS.items() for k in cases])
def test_a_setting_changes_what_comes_out(
    command: str, key: str, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    _, cases, base = KINDS[command]
    value, needed = cases[key]
    (folder / "one.jsonl").write_text((folder / "pairs.jsonl").read_text().splitlines()[0] + "\n")
    outcomes = []
    for name, given in (("before", needed), ("after", {**needed, key: value})):
        (tmp_path / name).mkdir()
        outcomes.append(outcome(command, base | given, folder, tmp_path / name, capsys, monkeypatch))
    assert outcomes[0] != outcomes[1], f"{key} has no effect on {command}"
    if key not in ("model", "policy", "reference", "columns", "prompts"):
        assert outcomes[0][0] != REFUSED, outcomes[0]
