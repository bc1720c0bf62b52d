"""``afzal train``: every setting is a flag, a YAML key and an override, with the same effect."""

from __future__ import annotations

import shutil
import sys
from inspect import get_annotations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import afzal
from afzal import config
from afzal.cli import main
from afzal.cli.flags import flag, off

# For every setting: a typed text, its value, and the other flags that it needs to have an effect.
MASS = ["--constraint", "unsafe_mass", "--constraint-tokens", "a", "--constraint-weight", "1"]

VALUES: dict[str, tuple[str, Any, list[str]]] = {
    "model": ("1e-6", "1e-6", []),
    "data": ("a b.jsonl", "a b.jsonl", []),
    "eval_data": ("held.jsonl", "held.jsonl", []),
    "eval_fraction": ("0.25", 0.25, []),
    "columns": ("chosen=good,prompt=q", {"chosen": "good", "prompt": "q"}, []),
    "data_format": ("trl", "trl", []),
    "axis": ("safer", "safer", []),
    "skip_bad": ("", True, []),
    "clean": ("", False, []),
    "chat_template": ("chat.jinja", "chat.jinja", []),
    "max_tokens": ("77", 77, []),
    "eos_token": ("<s>", "<s>", []),
    "dtype": ("bf16", "bf16", []),
    "device": ("cuda:1", "cuda:1", []),
    "sharing": ("unshared", "unshared", []),
    "activation_checkpointing": ("selective", "selective", []),
    "memory_gb": ("12.5", 12.5, []),
    "offload": ("optimizer", "optimizer", []),
    "tensor_parallel": ("2", 2, []),
    "compile": ("", True, []),
    "adapter": ("ia3", "ia3", []),
    "lora_rank": ("4", 4, []),
    "lora_alpha": ("3", 3.0, ["--lora-rank", "4"]),
    "lora_targets": ("q_proj,v_proj", ["q_proj", "v_proj"], ["--lora-rank", "4"]),
    "virtual_tokens": ("4", 4, ["--adapter", "prompt"]),
    "quantize": ("4bit", "4bit", []),
    "train_towers": ("", True, []),
    "adapter_from": ("begun", "begun", []),
    "prior": ("2", 2.0, ["--adapter-from", "begun"]),
    "prior_labels": ("8", 8, ["--adapter-from", "begun", "--prior", "2"]),
    "task": ("topic", "topic", []),
    "order": ("reptile", "reptile", []),
    "inner_steps": ("2", 2, []),
    "inner_lr": ("0.5", 0.5, []),
    "support_size": ("6", 6, []),
    "query_size": ("6", 6, []),
    "batch_size": ("3", 3, []),
    "tokens_per_forward": ("99", 99, []),
    "epochs": ("0.5", 0.5, []),
    "max_steps": ("12", 12, []),
    "lr": ("3e-5", 3e-5, []),
    "lr_schedule": ("cosine", "cosine", []),
    "warmup": ("150", 150.0, []),
    "optimizer": ("rmsprop", "rmsprop", []),
    "weight_decay": ("0.01", 0.01, []),
    "max_grad_norm": ("10", 10.0, []),
    "adam_beta1": ("0.8", 0.8, []),
    "adam_beta2": ("0.95", 0.95, []),
    "adam_eps": ("1e-5", 1e-5, []),
    "beta": ("0.5", 0.5, []),
    "reference": ("cached", "cached", []),
    "reference_cache": ("cache", "cache", ["--reference", "cached"]),
    "reference_sync_steps": ("5", 5, []),
    "reference_mixup": ("1", 1.0, ["--reference-sync-steps", "5"]),
    "objective": ("ipo", "ipo", []),
    "objective_arg": ("beta=0.5,bco.scale=x", {"beta": 0.5, "bco.scale": "x"}, []),
    "soft_labels": ("majority", "majority", []),
    "learn": ("nu", ["nu"], []),
    "learned_lr": ("0.5", 0.5, ["--learn", "nu"]),
    "constraint": ("unsafe_mass", "unsafe_mass", []),
    "constraint_bound": ("0.5", 0.5, MASS),
    "constraint_weight": ("2", 2.0, MASS),
    "constraint_dual_lr": ("2", 2.0, [*MASS[:4], "--constraint-dual-lr", "1"]),
    "constraint_tokens": ("b", ["a", "b"], MASS),
    "constraint_data": (
        "b.jsonl",
        "b.jsonl",
        ["--constraint", "unsafe_likelihood", "--constraint-weight", "1", "--constraint-data", "a.jsonl"],
    ),
    "constraint_score": (
        "m:g",
        "m:g",
        ["--constraint", "black_box", "--constraint-weight", "1", "--constraint-score", "m:f"],
    ),
    "desirable_weight": ("1.5", 1.5, []),
    "undesirable_weight": ("0.5", 0.5, []),
    "eval_every_steps": ("5", 5, []),
    "early_stop_patience": ("2", 2, []),
    "centering": ("0", 0.0, []),
    "heads": ("3", 3, []),
    "shift": ("none", "none", []),
    "sample_prompts": ("0", 0, []),
    "sample_tokens": ("9", 9, []),
    "sample_temperature": ("0", 0.0, []),
    "out": ("R", "R", []),
    "seed": ("7", 7, []),
    "log_every_steps": ("10", 10, []),
    "save_every_steps": ("20", 20, []),
    "keep_checkpoints": ("3", 3, []),
    "push_to_hub": ("me/tiny", "me/tiny", []),
    "hub_public": ("", True, ["--push-to-hub", "me/tiny"]),
    "save_dtype": ("bf16", "bf16", []),
    "save_every_minutes": ("2.5", 2.5, []),
    "report_to": ("wandb,mlflow", ["wandb", "mlflow"], []),
    "samples": ("drawn.jsonl", "drawn.jsonl", []),
    "reward": ("r.py:other", "r.py:other", []),
    "n": ("6", 6, []),
    "iterations": ("9", 9, []),
    "ppo_epochs": ("7", 7, []),
    "minibatches": ("3", 3, []),
    "temperature": ("0.7", 0.7, []),
    "missing_eos_penalty": ("1", 1.0, []),
    "kl_coef": ("0.2", 0.2, []),
    "kl_target": ("6", 6.0, []),
    "kl_horizon": ("500", 500.0, ["--kl-target", "6"]),
    "clip": ("0.1", 0.1, ["--minibatches", "2"]),
    "clip_high": ("0.28", 0.28, ["--minibatches", "2"]),
    "eval_prompts": ("5", 5, []),
    "whiten": ("", False, []),
    "gamma": ("0.9", 0.9, []),
    "lam": ("1", 1.0, []),
    "value": ("shared", "shared", []),
    "value_model": ("runs/reward", "runs/reward", []),
    "value_lr": ("1e-5", 1e-5, []),
    "vf_coef": ("0.5", 0.5, []),
    "value_clip": ("0.5", 0.5, []),
    "group_std": ("", False, []),
}


@pytest.fixture(scope="module")
def before() -> dict[tuple[str, ...], config.TrainConfig]:
    """Flags that many tests begin with."""
    return {}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[config.TrainConfig, bool, str]]:
    """Arguments of the recipe's call: (config, resume, command)."""
    calls: list[tuple[config.TrainConfig, bool, str]] = []

    def train(settings: config.TrainConfig, *, resume: bool, command: str) -> Path:
        calls.append((settings, resume, command))
        return Path(settings.out)

    def plan(settings: config.TrainConfig) -> list[str]:
        return [f"2 updates of {settings.batch_size} items"]

    fake = SimpleNamespace(train=train, plan=plan)
    monkeypatch.setitem(sys.modules, "afzal.recipes", fake)
    monkeypatch.setattr(afzal, "recipes", fake, raising=False)
    return calls


ONLINE = tuple(m for m in config.METHODS if issubclass(config.CONFIGS[m], config.OnlineConfig))
OTHERS = {("reward", "objective"): ("bradley_terry_margin", "bradley_terry_margin", [])}
OTHERS[("irl", "objective")] = ("airl", "airl", [])
OTHERS[("irl", "heads")] = ("3", 3, ["--objective", "demonstration_pairs"])
OTHERS |= {(method, "reference"): ("runs/sft", "runs/sft", []) for method in ONLINE}
"""Settings for which a method takes other values than the rest."""


def settings_of(method: str) -> list[str]:
    return [key for key in config.CONFIGS[method].model_fields if key != "method"]


def test_the_table_above_covers_every_setting():
    assert set(VALUES) == {key for method in config.METHODS for key in settings_of(method)}


def flag_of(key: str) -> str:
    """The flag of a setting."""
    field = next(kind.model_fields[key] for kind in config.CONFIGS.values() if key in kind.model_fields)
    return off(key) if field.default is True else flag(key)


# Settings whose default depends on another one.
FOLLOWS = {
    "adapter": {"lr"},
    "lora_rank": {"lr"},
    "adapter_from": {"lr"},
    "eval_data": {"eval_fraction"},
    "data": {"out"},
    "constraint": {"constraint_tokens", "constraint_weight"},
}

# Settings that a method has but accepts only one value for; the reasons are in its file.
REFUSED = {("meta", key) for key in ("dtype", "learn", "learned_lr", "prior", "prior_labels", "quantize")}
REFUSED |= {("meta", "reference_sync_steps"), ("meta", "reference_mixup")}
REFUSED |= {(method, key) for method in ONLINE for key in ("adapter_from", "prior", "prior_labels")}

# Settings that are refused unless others are given.
TOGETHER = {"constraint": MASS[2:]}


def each_setting() -> list[Any]:
    """Every setting of every method; slow if another method has the same field and takes the same values."""
    met, cases = set(), []
    for method in config.METHODS:
        for key in settings_of(method):
            owner = next(c for c in config.CONFIGS[method].__mro__ if key in get_annotations(c))
            alike = (key, owner, (method, key) in REFUSED, str(OTHERS.get((method, key))))
            cases.append(pytest.param(method, key, marks=[pytest.mark.slow] if alike in met else []))
            met.add(alike)
    return cases


@pytest.mark.parametrize(("method", "key"), each_setting())
def test_every_setting_is_a_flag_with_an_effect(method: str, key: str, seen: list[Any], before: dict[Any, Any]):
    text, value, needed = OTHERS.get((method, key), VALUES[key])
    base = ["train", method, "--model", "M", "--data", "D", *needed]
    base += ["--reward", "r.py:f"] if method in ONLINE else ["--samples", "S"] if method == "irl" else []
    with_it = [*base, flag_of(key), *([text] if text else []), *TOGETHER.get(key, [])]
    if (method, key) in REFUSED:
        assert main(with_it) == 2
        return
    if tuple(base) not in before:
        assert main(base) == 0
        before[tuple(base)] = seen.pop()[0]
    without = before[tuple(base)]
    assert main(with_it) == 0
    ((given, _, _),) = seen
    assert getattr(given, key) == value
    changed = {k for k in type(given).model_fields if getattr(given, k) != getattr(without, k)}
    assert key in changed
    assert changed <= {key} | FOLLOWS.get(key, set())


@pytest.mark.parametrize("method", config.METHODS)
def test_every_flag_is_in_the_help_even_on_a_narrow_terminal(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", method, "--help"]) == 0
    words = set(capsys.readouterr().out.split())
    assert {flag_of(key) for key in settings_of(method)} <= words
    assert {"Data", "Model", "Optimisation", "Evaluation", "Run", "--resume", "--dry-run"} <= words


def test_a_file_with_overrides_and_flags_on_top(tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.yaml"
    path.write_text("method: kto\nmodel: M\ndata: D\nlr: 1e-6\nbatch_size: 4\nout: R\n")
    assert main(["train", str(path), "lr=2e-6", "--batch-size", "8", "--resume"]) == 0
    settings, resume, command = seen[0]
    assert isinstance(settings, config.CONFIGS["kto"])
    assert (settings.lr, settings.batch_size, resume) == (2e-6, 8, True)
    assert command == f"afzal train {path} lr=2e-6 --batch-size 8 --resume"
    assert capsys.readouterr().out == "report: R/report.html\n"


def test_a_run_folder_can_replace_its_configuration(tmp_path: Path, seen: list[Any]):
    settings = config.make("ipo", model="M", data="D", out=str(tmp_path))
    (tmp_path / "run.yaml").write_text(config.dump(settings))
    assert main(["train", str(tmp_path), "--resume"]) == 0
    assert seen[0][:2] == (settings, True)


@pytest.mark.parametrize("named", ["{copy}", "{copy}/", "{copy}/run.yaml"])
def test_a_copied_run_resumes_in_the_copy(tmp_path: Path, seen: list[Any], named: str):
    """Its run.yaml still names the original folder; a typed --out overrides both."""
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    (first / "run.yaml").write_text(config.dump(config.make("ipo", model="M", data="D", out=str(first))))
    (first / "run.json").write_text("{}")
    shutil.copytree(first, copy)
    word = named.format(copy=copy)
    assert main(["train", word, "--resume"]) == 0
    assert main(["train", word, "--out", "typed", "--resume"]) == 0
    assert main(["train", word, "--resume", "out=typed"]) == 0
    assert [call[0].out for call in seen] == [str(copy), "typed", "typed"]


def test_a_run_named_from_another_folder_resumes_where_it_is(tmp_path: Path, seen: list[Any], monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.yaml").write_text("method: dpo\nmodel: M\ndata: D\nout: runs/a\n")
    (tmp_path / "runs" / "a" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "runs")
    assert main(["train", "a", "--resume"]) == 0
    assert seen[0][0].out == "a"


def test_the_same_command_continues_when_resume_is_added(seen: list[Any]):
    line = ["train", "dpo", "--model", "M", "--data", "D", "--out", "R"]
    assert main(line) == 0
    assert main([*line, "--resume"]) == 0
    assert seen[0][0] == seen[1][0]
    assert [call[1] for call in seen] == [False, True]


def test_an_override_may_change_the_method_of_a_file(tmp_path: Path, seen: list[Any]):
    path = tmp_path / "run.yaml"
    path.write_text("method: dpo\nmodel: M\ndata: D\n")
    assert main(["train", str(path), "method=ipo", "--beta", "0.2"]) == 0
    assert (seen[0][0].method, seen[0][0].beta) == ("ipo", 0.2)


def test_a_file_of_one_method_has_only_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.yaml"
    path.write_text("method: sft\nmodel: M\ndata: D\n")
    assert main(["train", str(path), "--beta", "0.2"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown option --beta")


def test_a_flag_for_several_values_may_be_repeated(seen: list[Any]):
    line = ["train", "prefer", "--model", "M", "--data", "D", "--objective", "simpo"]
    assert (
        main([*line, "--objective-arg", "beta=2.5", "--objective-arg", "gamma=0.5", "--learn", "a", "--learn", "b"])
        == 0
    )
    assert (seen[0][0].objective_arg, seen[0][0].learn) == ({"beta": 2.5, "gamma": 0.5}, ["a", "b"])


def test_a_dry_run_shows_settings_and_plan_and_trains_nothing(seen: list[Any], capsys: pytest.CaptureFixture[str]):
    assert main(["train", "dpo", "--model", "M", "--data", "D", "--batch-size", "4", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert config.dump(config.make("dpo", model="M", data="D", batch_size=4)) in shown
    assert "2 updates of 4 items" in shown
    assert seen == []


def test_score_passes_its_settings_on_and_prints_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls: list[config.ScoreConfig] = []
    fake = SimpleNamespace(score=lambda settings: calls.append(settings) or ["accuracy 0.9"])
    monkeypatch.setitem(sys.modules, "afzal.rewards.score", fake)
    line = ["score", "--policy", "P", "--reference", "Q", "--beta", "0.3", "--data", "D", "--columns", "chosen=good"]
    assert main(line) == 0
    (settings,) = calls
    assert (settings.policy, settings.reference, settings.beta) == ("P", "Q", 0.3)
    assert settings.columns == {"chosen": "good"}
    assert capsys.readouterr().out == "accuracy 0.9\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either model"),
        (["--model", "M", "--policy", "P", "--reference", "Q"], "give either model"),
        (["--policy", "P"], "belong together"),
        (["--model", "M", "--beta", "0.5"], "beta has no effect"),
    ],
)
def test_score_refuses_what_does_not_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["score", "--data", "D", *words]) == 2
    assert said in capsys.readouterr().err


def test_generate_passes_its_settings_on(monkeypatch: pytest.MonkeyPatch):
    calls: list[config.GenerateConfig] = []
    fake = SimpleNamespace(generate=calls.append, answers=None)
    monkeypatch.setitem(sys.modules, "afzal.generate.run", fake)
    assert main(["generate", "--model", "R", "--prompt", "Once", "-n", "4", "--top-p", "0.9"]) == 0
    (settings,) = calls
    assert (settings.model, settings.prompt, settings.n, settings.top_p) == ("R", "Once", 4, 0.9)
