"""Every setting of every training method has an effect, or is refused: changed alone in a run of a few updates, it
changes what the run leaves behind (weights, metrics, samples, losses, files) or how it computes.

What a run writes about itself (``run.json``, ``run.yaml``, report, card) does not count, since it repeats the settings.
The fast tests check each setting once, with the first method that has it, and the slow ones with all others.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import model_folder, one_thread, pair_file
from helpers_tokenizers import CHATML
from torch.nn.modules.module import register_module_forward_hook

from afzal import config, recipes
from afzal.errors import AfzalError

# Of methods with the same settings, the first; DPO before all, since it has most of what others have.
_KINDS = {kind: name for name, kind in reversed(config.CONFIGS.items())}
METHODS = sorted(_KINDS.values(), key=lambda name: (name != "dpo", list(config.CONFIGS).index(name)))
ONLINE = [name for name in METHODS if issubclass(config.CONFIGS[name], config.OnlineConfig)]

Case = tuple[Any, dict[str, Any]]
"""Another value of a setting, and what else must be given for it to have an effect; None leaves a setting out."""

_MASS = {"constraint_tokens": ["e"], "constraint_weight": 1.0}
_HELD = {"constraint": "unsafe_mass", **_MASS}
_MANY = {"ppo_epochs": 2, "lr": 0.3}

CASES: dict[str, Case] = {
    "model": ("other", {}),
    "data": ("more.jsonl", {}),
    "eval_data": ("more.jsonl", {"eval_fraction": None}),
    "eval_fraction": (0.8, {}),
    "columns": ({"prompt": "prompt", "chosen": "good", "rejected": "bad"}, {"data": "named.jsonl"}),
    "data_format": ("ultrafeedback", {}),
    "axis": ("safer", {"data": "axes.jsonl"}),
    "skip_bad": (True, {"data": "damaged.jsonl"}),
    "clean": (False, {"data": "twice.jsonl"}),
    "chat_template": ("other.jinja", {"data": "chat.jsonl", "chat_template": "chat.jinja", "max_tokens": 200}),
    "max_tokens": (18, {}),
    "eos_token": ("<pad>", {}),
    "dtype": ("bf16", {}),
    "device": ("cuda:7", {}),
    "sharing": ("unshared", {}),
    "compile": (True, {}),
    "adapter": ("dora", {}),
    "lora_rank": (2, {}),
    "lora_alpha": (3.0, {"lora_rank": 2}),
    "lora_targets": (["q_proj"], {"lora_rank": 2}),
    "virtual_tokens": (3, {"adapter": "prompt"}),
    "adapter_from": ("started", {}),
    "prior": (1.0, {"adapter_from": "started", "optimizer": "sgd"}),
    "prior_labels": (1, {"adapter_from": "started", "optimizer": "sgd", "prior": 1.0}),
    "quantize": ("4bit", {}),
    "train_towers": (True, {}),
    "activation_checkpointing": ("full", {}),
    "memory_gb": (1e-6, {}),
    "offload": ("optimizer", {}),
    "tensor_parallel": (2, {}),
    "batch_size": (3, {}),
    "tokens_per_forward": (20, {}),
    "epochs": (2.0, {}),
    "max_steps": (1, {}),
    "lr": (0.1, {}),
    "lr_schedule": ("cosine", {"epochs": 2.0}),
    "warmup": (3.0, {}),
    "optimizer": ("rmsprop", {}),
    "weight_decay": (0.5, {}),
    "max_grad_norm": (0.01, {"optimizer": "rmsprop"}),
    "adam_beta1": (0.5, {}),
    "adam_beta2": (0.5, {}),
    "adam_eps": (0.1, {}),
    "eval_every_steps": (2, {}),
    "early_stop_patience": (1, {"lr": 0.0}),
    "sample_prompts": (1, {}),
    "sample_tokens": (3, {}),
    "sample_temperature": (0.3, {}),
    "out": ("elsewhere", {}),
    "seed": (5, {}),
    "log_every_steps": (2, {}),
    "save_every_steps": (1, {"keep_checkpoints": 9}),
    "save_every_minutes": (1e-9, {"keep_checkpoints": 9}),
    "keep_checkpoints": (2, {"save_every_steps": 1}),
    "push_to_hub": ("me/tiny", {}),
    "hub_public": (True, {}),
    "save_dtype": ("bf16", {}),
    "report_to": (["tensorboard"], {}),
    "method": ("ipo", {}),
    "reference": ("other", {}),
    "reference_sync_steps": (1, {}),
    "reference_mixup": (0.1, {"reference_sync_steps": 1}),
    "reference_cache": ("cache", {"reference": "cached"}),
    "beta": (0.5, {}),
    "desirable_weight": (2.0, {}),
    "undesirable_weight": (2.0, {}),
    "objective": ("ipo", {}),
    "objective_arg": ({"beta": 0.5}, {}),
    "soft_labels": ("majority", {"data": "unsure.jsonl"}),
    "learn": (["nu"], {"objective": "rao_kupper"}),
    "learned_lr": (0.5, {"objective": "rao_kupper", "learn": ["nu"]}),
    "constraint": ("unsafe_mass", {}),
    "constraint_bound": (0.9, _HELD),
    "constraint_weight": (9.0, _HELD),
    "constraint_dual_lr": (9.0, _HELD | {"constraint_weight": None, "constraint_dual_lr": 1.0}),
    "constraint_tokens": (["x"], _HELD),
    "constraint_data": (
        "more.jsonl",
        {"constraint": "unsafe_likelihood", "constraint_data": "pairs.jsonl", "constraint_weight": 1.0}
        | {"constraint_bound": -99.0},
    ),
    "constraint_score": (
        "rewards.py:letters",
        {"constraint": "black_box", "constraint_score": "rewards.py:length", "constraint_weight": 1.0},
    ),
    "centering": (9.0, {}),
    "samples": ("drawn-otherwise.jsonl", {}),
    "heads": (2, {}),
    "shift": ("none", {}),
    "reward": ("rewards.py:letters", {}),
    "n": (3, {}),
    "iterations": (1, {}),
    "ppo_epochs": (3, {}),
    "minibatches": (2, {}),
    "temperature": (0.5, {}),
    "missing_eos_penalty": (5.0, {}),
    "kl_coef": (2.0, {}),
    "clip": (1e-6, _MANY),
    "clip_high": (1e-6, _MANY),
    "eval_prompts": (1, {}),
    "kl_target": (0.5, {}),
    "kl_horizon": (1.0, {"kl_target": 0.5}),
    "whiten": (False, {}),
    "gamma": (0.5, {}),
    "lam": (0.1, {"lr": 0.3}),
    "value": ("shared", {}),
    "value_model": ("judge", {}),
    "value_lr": (0.5, {}),
    "vf_coef": (5.0, {"value": "shared"}),
    "value_clip": (1e-6, _MANY),
    "group_std": (False, {}),
    "order": ("maml", {}),
    "inner_steps": (1, {}),
    "inner_lr": (0.7, {}),
    "support_size": (3, {}),
    "query_size": (3, {}),
    "task": ("kind", {"data": "tasked.jsonl"}),
}
OF_METHOD: dict[tuple[str, str], Case] = {
    ("kto", "sharing"): ("shared", {"sharing": "unshared"}),
    ("ipo", "method"): ("dpo", {}),
    **{(method, "method"): (other, {}) for method, other in zip(ONLINE, (*ONLINE[1:], ONLINE[0]), strict=True)},
    **{(method, "axis"): ("safer", {"data": "partly.jsonl"}) for method in ONLINE},
    **{(method, "max_tokens"): (16, {}) for method in ONLINE},
    **{(method, "eos_token"): ("e", {"sample_tokens": 40}) for method in ONLINE},
    **{(method, "virtual_tokens"): (3, {}) for method in ONLINE},
    ("meta", "method"): ("dpo", {"support_size": None, "query_size": None, "inner_steps": None}),
    ("meta", "eval_data"): ("more.jsonl", {"eval_data": "pairs.jsonl", "eval_fraction": None}),
    ("meta", "eval_fraction"): (0.5, {}),
    ("meta", "batch_size"): (1, {}),
    ("meta", "prior"): (1.0, {"adapter_from": "started", "lora_rank": None}),
    ("meta", "lora_rank"): (3, {}),
    ("meta", "virtual_tokens"): (3, {"adapter": "prompt", "lora_rank": None}),
    ("meta", "adapter_from"): ("started", {"adapter_from": "begun", "lora_rank": None}),
    ("reward", "method"): ("dpo", {"sample_prompts": None, "sample_tokens": None}),
    ("reward", "objective"): ("bradley_terry_margin", {"data": "strong.jsonl"}),
    ("irl", "method"): ("sft", {}),
    ("irl", "axis"): ("safer", {"data": "partly.jsonl"}),
    ("irl", "chat_template"): (
        "other.jinja",
        {"data": "chat.jsonl", "samples": "drawn-chat.jsonl", "chat_template": "chat.jinja", "max_tokens": 200},
    ),
    ("irl", "objective"): ("airl", {}),
    ("irl", "heads"): (2, {"objective": "demonstration_pairs"}),
    ("irl", "eval_data"): ("later.jsonl", {"eval_fraction": None}),
    ("irl", "data"): ("later.jsonl", {}),
}
# Settings given or left out together with a setting that requires it.
BESIDE: dict[str | tuple[str, str], dict[str, Any]] = {"constraint": _MASS, ("irl", "method"): {"samples": None}}
# Settings that a plain run on a CPU refuses, and the pattern of the message; by method if only some refuse.
REFUSALS: dict[str | tuple[str, str], str] = {
    ("meta", "dtype"): "round inner steps away",
    ("meta", "reference_sync_steps"): "share one reference|needs a frozen copy",
    ("meta", "quantize"): "inner steps are taken in fp32",
    **{(method, "adapter_from"): "pull it back" for method in ONLINE},
    ("meta", "learn"): "inner steps move the adapter alone",
    ("meta", "prior"): "not held near another|names no adapter",
    **{(method, "virtual_tokens"): "virtual_tokens has no effect" for method in ONLINE},
    "data_format": "rows cannot be read",
    "push_to_hub": "needs the hub|no token",
    "hub_public": "push_to_hub is not set",
    "device": "cuda",
    "quantize": "bitsandbytes|adapter",
    "train_towers": "reads text only",
    "memory_gb": "memory_gb",
    "offload": "offload",
    "tensor_parallel": "does not divide the number of ranks, 1",
    **({} if find_spec("tensorboard") else {"report_to": "needs the package tensorboard"}),
}


# Settings that would have an effect only with another setting, which the method refuses.
ALWAYS_REFUSED = {("meta", key) for key in ("reference_mixup", "learned_lr", "prior_labels")}
ALWAYS_REFUSED |= {(method, key) for method in ONLINE for key in ("prior", "prior_labels")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a reward model, rewards, and data with every field that a setting reads."""
    path = tmp_path_factory.mktemp("settings")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    model_folder(path / "model", **small)
    model_folder(path / "other", **small, rms_norm_eps=0.1)
    pair_file(path / "pairs.jsonl", 8)
    rows = [json.loads(line) for line in (path / "pairs.jsonl").read_text().splitlines()]
    (path / "many").mkdir()

    def write(name: str, lines: list[dict[str, Any]]) -> None:
        (path / name).write_text("".join(json.dumps(x) + "\n" for x in lines))
        (path / "many" / name).write_text("".join(json.dumps(x) + "\n" for x in of_tasks(lines)))

    write("pairs.jsonl", rows)
    write("more.jsonl", [r | {"prompt": f"Or {r['prompt']}"} for r in rows])
    write("later.jsonl", rows[2:])
    drawn = [{"prompt": r["prompt"], "completion": text} for r in rows for text in (r["rejected"], " away")]
    write("drawn.jsonl", drawn)
    write("drawn-otherwise.jsonl", [r | {"completion": r["completion"] + "!"} for r in drawn])
    write("named.jsonl", [{"prompt": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows])
    write("twice.jsonl", rows + rows[:3])
    for part in (path, path / "many"):
        (part / "damaged.jsonl").write_text((part / "pairs.jsonl").read_text() + '{"prompt": "x"\n')
    turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    answers = ("chosen", "rejected")
    write(
        "chat.jsonl",
        [{"prompt": turn("user", r["prompt"])} | {k: turn("assistant", r[k]) for k in answers} for r in rows],
    )
    write(
        "drawn-chat.jsonl",
        [{"prompt": turn("user", r["prompt"]), "completion": turn("assistant", r["completion"])} for r in drawn],
    )
    two = lambda r: {"prompt": r["prompt"], "response_0": r["chosen"], "response_1": r["rejected"]}  # noqa: E731
    write("axes.jsonl", [two(r) | {"better_response_id": 0, "safer_response_id": k % 2} for k, r in enumerate(rows)])
    votes = [
        {"vote": "comparison", "first": 0, "second": 1, "outcome": "first", "axis": axis}
        for axis in ("better", "safer")
    ]
    said = lambda text: {"turns": text}  # noqa: E731
    native = [
        {"afzal": 1, "id": str(k), "prompt": r["prompt"], "responses": [said(r["chosen"]), said(r["rejected"])]}
        | {"votes": votes[: 1 + k % 2]}
        for k, r in enumerate(rows)
    ]
    write("partly.jsonl", native)
    write("unsure.jsonl", [r | {"p": 0.6 + 0.04 * k} for k, r in enumerate(rows)])
    write("tasked.jsonl", [r | {"task": "ab"[k % 2], "kind": "cd"[k // 2 % 2]} for k, r in enumerate(rows)])
    write("strong.jsonl", [r | {"margin": 1.0 + k} for k, r in enumerate(rows)])
    (path / "chat.jinja").write_text(CHATML)
    (path / "other.jinja").write_text(CHATML.replace("\\n", " "))
    (path / "rewards.py").write_text(
        "def length(prompt, answer):\n    return float(len(answer))\n\n\n"
        "def letters(prompt, answer):\n    return float(sum(c < 'n' for c in answer))\n"
    )
    with one_thread():
        given = given_to("reward", {"out": str(path / "judge")}, path)
        recipes.train(config.make("reward", **given))
        for name, seed in (("started", 0), ("begun", 1)):
            about = {"out": str(path / name), "lora_rank": 2, "seed": seed, "max_steps": 1}
            recipes.train(config.make("dpo", **given_to("dpo", about, path)))
    return path


def of_tasks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Four times as many rows with other prompts, of two tasks; and of two others by ``kind``."""
    made = []
    for j in range(4):
        for k, row in enumerate(rows):
            asked = row["prompt"]
            other = f"{j} {asked}" if isinstance(asked, str) else [asked[0] | {"content": f"{j} {asked[0]['content']}"}]
            names = {"task": "ab"[k % 2], "kind": "cd"[k // 2 % 2]}
            own = {"id": f"{k}-{j}", "extra": names} if "afzal" in row else names
            made.append(row | {"prompt": other} | own)
    return made


def given_to(method: str, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a run of three updates of two items, or of three iterations of two prompts."""
    base: dict[str, Any] = {"model": "model", "data": "pairs.jsonl", "batch_size": 2, "lr": 0.02, "device": "cpu"}
    base |= {"eval_fraction": 0.25, "max_tokens": 64}
    if method == "irl":
        base |= {"samples": "drawn.jsonl"}
    elif method != "reward":
        base |= {"sample_prompts": 2, "sample_tokens": 5}
    if method in ONLINE:
        base |= {"reward": "rewards.py:length"}
    if method == "meta":
        base |= {"support_size": 2, "query_size": 2, "lora_rank": 2, "inner_steps": 2}
    given = {k: v for k, v in (base | changes).items() if v is not None}
    if method == "meta":
        folder_of = lambda name: f"many/{name}" if (folder / "many" / str(name)).is_file() else name  # noqa: E731
        given |= {k: folder_of(given[k]) for k in ("data", "eval_data") if k in given}
    return {k: _placed(v, folder) for k, v in given.items()}


def _placed(value: Any, folder: Path) -> Any:
    """The path of a named object in the folder."""
    if not isinstance(value, str) or not (folder / value.partition(":")[0]).exists():
        return value
    return str(folder / value)


def outcome(method: str, changes: dict[str, Any], folder: Path, place: Path, monkeypatch: Any) -> dict[str, Any]:
    """What a run leaves behind and how it computed, or the refusal with its reason."""
    own = {"out": "run"} | changes
    own |= {k: str(place / own[k]) for k in ("out", "reference_cache") if k in own}
    calls: Counter[str] = Counter()
    compiled = lambda module, **_: calls.update([f"compiled {type(module).__name__}"])  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    for name in ("build", "write_card"):  # repeat the observed figures, and take half of the time
        monkeypatch.setattr(importlib.import_module("afzal.recipes.train").report, name, lambda *_: None)
    hook = register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    try:
        with one_thread():
            recipes.train(config.make(own.pop("method", method), **given_to(method, own, folder)))
    except AfzalError as error:
        return {"refused": str(error)}
    finally:
        hook.remove()
        monkeypatch.undo()
    return {"calls": calls, "files": dict(_files(place))}


def _files(place: Path) -> Iterator[tuple[str, str]]:
    """All files below, and the contents of those that do not repeat the settings."""
    for path in sorted(p for p in place.rglob("*") if p.is_file()):
        content = ""
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            content = json.dumps([{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines])
        elif path.name in ("samples.jsonl", "dropped.jsonl", "config.json"):
            content = path.read_text()
        elif path.name == "run.json":
            content = json.dumps(json.loads(path.read_text()).get("data", {}).get("tasks"))
        elif path.suffix == ".safetensors" and "checkpoints" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        yield str(path.relative_to(place)), content


@pytest.fixture(scope="module")
def runs_before(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome without the change; settings that need the same other settings share a run."""
    known: dict[str, dict[str, Any]] = {}

    def before(method: str, needed: dict[str, Any], monkeypatch: Any) -> dict[str, Any]:
        key = method + json.dumps(needed, sort_keys=True)
        if key not in known:
            known[key] = outcome(method, needed, folder, tmp_path_factory.mktemp("before"), monkeypatch)
        return known[key]

    return before


def case_of(method: str, key: str) -> Case:
    return OF_METHOD.get((method, key), CASES[key])


def _asked() -> Iterator[Any]:
    seen: set[str] = set()
    for method in METHODS:
        for key in config.CONFIGS[method].model_fields:
            if (method, key) in ALWAYS_REFUSED:
                continue
            yield pytest.param(method, key, marks=[pytest.mark.slow] if key in seen else [])
            seen.add(key)


def test_every_setting_of_training_is_asked():
    assert set(CASES) == {key for kind in config.CONFIGS.values() for key in kind.model_fields}


@pytest.mark.parametrize(("method", "key"), _asked())
def test_a_setting_of_training_changes_the_run(
    method: str, key: str, folder: Path, tmp_path: Path, runs_before: Any, monkeypatch: Any
):
    value, needed = case_of(method, key)
    before = runs_before(method, needed, monkeypatch)
    beside = BESIDE.get((method, key), BESIDE.get(key, {}))
    after = outcome(method, {**needed, **beside, key: value}, folder, tmp_path, monkeypatch)
    assert before != after, f"{key} has no effect on {method}"
    if key not in ("columns", "skip_bad"):  # which lift other refusals
        assert "refused" not in before, before
    pattern = REFUSALS.get((method, key), REFUSALS.get(key))
    if pattern is not None:
        assert re.search(pattern, after["refused"]), after["refused"]
    else:
        assert "refused" not in after, after
