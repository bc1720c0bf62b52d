"""Configurations of TRL (``trl dpo --config FILE``): arguments of the script, the trainer and the model.

Defaults are those of TRL 1.16 and the Trainer of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError

from . import common, unmapped_keys
from .translation import Translation, texts
from .trl_losses import LOSSES, cpo, orpo, trl_dpo
from .trl_online import rollouts

NAME = "TRL"
METHODS = ("sft", "dpo", "kto", "reward", "cpo", "orpo", "grpo", "rloo")

IDENTIFYING_KEYS = (
    "dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming dataset_mixer use_peft "
    "lora_r lora_target_modules loss_type loss_weights beta max_length max_prompt_length truncation_mode "
    "model_name_or_path per_device_train_batch_size learning_rate precompute_ref_log_probs sync_ref_model "
    "label_smoothing f_divergence_type desirable_weight undesirable_weight center_rewards_coefficient num_generations "
    "reward_funcs cpo_alpha simpo_gamma reward_model_name_or_path completion_only_loss assistant_only_loss packing "
    "torch_dtype dataset_text_field"
)
"""Keys by which a file is recognised as TRL's."""

# Keys that only one method has; they identify the method of a file without a command.
_SIGNS = {
    "kto": "desirable_weight undesirable_weight",
    "reward": "center_rewards_coefficient",
    "cpo": "cpo_alpha simpo_gamma",
    "sft": "packing completion_only_loss assistant_only_loss dataset_text_field packing_strategy eval_packing",
    "grpo": "scale_rewards epsilon_high delta importance_sampling_level multi_objective_aggregation",
    "rloo": "normalize_advantages reward_clip_range rloo_k",
}
_DPO_KEYS = (
    "truncation_mode precompute_ref_log_probs loss_weights ld_alpha f_divergence_type use_weighting discopop_tau "
    "rpo_alpha max_prompt_length generate_during_eval beta sync_ref_model"
)
_LR = {"sft": 2e-5, "reward": 1e-4}


def method_of(file_values: Mapping[str, Any], command: str | None, path: Path) -> str:
    """The TRL command that a configuration is for; the file itself does not state it.

    Raises:
        AfzalError: the command cannot be determined, or is not supported.
    """
    if command is not None:
        if command not in METHODS:
            raise AfzalError(f"--method {command!r} is not a supported command of TRL", remedy=" ".join(METHODS))
        return command
    losses = set(texts(file_values.get("loss_type")))
    if losses & {"kto", "apo_zero_unpaired"}:
        return "kto"
    for method, keys in _SIGNS.items():
        if not file_values.keys().isdisjoint(keys.split()):
            return method
    if losses & (LOSSES.keys() - {"sft"}):
        return "dpo"
    if not file_values.keys().isdisjoint(("num_generations", "reward_funcs", "reward_model_name_or_path")):
        return _method_in_name(path, ("rloo", "grpo")) or "grpo"
    method_in_name = _method_in_name(path, METHODS)
    if method_in_name is not None:
        return method_in_name
    if not file_values.keys().isdisjoint(_DPO_KEYS.split()):
        return "dpo"
    raise AfzalError(
        "the configuration does not say which command of TRL it is for",
        where=str(path),
        why="TRL's YAML has no key for it, and none of the keys belongs to a single method",
        remedy=f"--method {'|'.join(METHODS)}",
    )


def _method_in_name(path: Path, methods: tuple[str, ...]) -> str | None:
    """The one method that appears as a word in the file name; None if there is none, or several."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    matches = [method for method in methods if method in words]
    return matches[0] if len(matches) == 1 else None


def translate(t: Translation, path: Path, *, method: str | None, processes: int) -> None:
    """Translate a configuration of TRL into Afzal's settings."""
    name = method_of(t.file_values, method, path)
    online = name in ("grpo", "rloo")
    _model(t)
    _data(t, path.parent, name)
    if online:
        rollouts(t, name, processes)
        _reference(t)
    else:
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        common.batch(t, t.integer(keys[0], 8) * t.integer(keys[1], 1), processes, *keys)
    {"sft": _sft, "dpo": _dpo, "kto": _kto, "reward": _reward, "cpo": cpo, "orpo": orpo}.get(name, lambda _t: None)(t)
    common.trainer_arguments(t, {"learning_rate": _LR.get(name, 1e-6)}, processes)
    if not online:
        _lengths(t)
    _adapter(t)
    t.idle("disable_dropout", common.NO_DROPOUT)
    hub(t)
    common.close(t, idle=unmapped_keys.TRL_IDLE, lost=unmapped_keys.TRL_LOST)


def hub(t: Translation) -> None:
    """Translate where the result is uploaded."""
    if t.switch("push_to_hub") and t.has("hub_model_id"):
        t.put("push_to_hub", t.text("hub_model_id"), "push_to_hub", "hub_model_id")
    else:
        t.idle("push_to_hub", "off; --push-to-hub OWNER/NAME uploads the result")
        t.idle("hub_model_id", "push_to_hub is off")
    why = "the result is uploaded once, at the end; the token is that of hf auth login"
    t.idle_all({why: "hub_token hub_strategy hub_always_push hub_revision hub_private_repo"})


def _model(t: Translation) -> None:
    if t.has("model_name_or_path"):
        t.put("model", t.text("model_name_or_path"), "model_name_or_path")
    if t.value("model_revision", "main") != "main":
        t.lose("model_revision", "the hub's main revision is read: download the other one and give its folder")
    t.idle("model_revision", "main, as here")
    kind = t.text("dtype", t.text("torch_dtype", "float32"))
    for key in ("dtype", "torch_dtype"):
        if kind in ("float32", "auto"):
            t.idle(key, "trained weights are float32, whatever the files contain")
        else:
            t.change(key, "trained weights stay float32; dtype is the format of the forward pass")


def _data(t: Translation, base: Path, method: str) -> None:
    split = t.text("dataset_train_split", "train")
    keys = ("dataset_name", "dataset_config", "dataset_train_split")
    test = ""
    if t.has("datasets"):
        for key in (*keys, "dataset_test_split"):
            t.idle(
                key, "datasets is read instead" if key == "dataset_name" else "each entry of datasets names its split"
            )
        parts = [entry if isinstance(entry, Mapping) else {"path": str(entry)} for entry in t.entries("datasets")]
        total = sum(float(part.get("fraction") or 0) for part in parts)
        common.one_or_mixture(t, [source for part in parts for source in _parts(part, base, total)], "datasets")
        if any(part.get("fraction") is not None for part in parts):
            t.change("datasets", "fraction is a share of an epoch here; TRL takes the first rows of each part", "data")
        if t.has("test_split_size"):
            t.put("eval_fraction", t.number("test_split_size"), "test_split_size")
            common.evaluation(t, "test", "eval_strategy evaluation_strategy")
            return
    elif t.has("dataset_mixer"):
        sources = [{"data": common.dataset(n, None, None, base=base)} for n in t.inner("dataset_mixer")]
        common.one_or_mixture(t, sources, "dataset_mixer", "dataset_splits")
        t.change("dataset_mixer", "shares of a data set below 1 are ignored: set share in the file of sources", "data")
    elif t.has("dataset_name"):
        name, config = t.text("dataset_name"), t.value("dataset_config")
        t.put("data", common.dataset(name, config, split, base=base), *keys)
        test = common.dataset(name, config, t.value("dataset_test_split", "test"), base=base)
    if t.settings.get("data") and t.value("eval_strategy", t.value("evaluation_strategy")) not in _NEVER:
        if test and test != t.settings["data"]:
            t.put("eval_data", test, "dataset_test_split")
            common.evaluation(t, "test", "eval_strategy evaluation_strategy")
            return
        t.settings["eval_fraction"] = 0.1
        t.change("eval_strategy", "no test split was found: a tenth of the items is held out", "eval_fraction")
        return
    t.idle("dataset_test_split", "read only if there is an evaluation (eval_strategy)")
    common.evaluation(t, "", "eval_strategy evaluation_strategy")


_NEVER = (False, "no", "None", None)


def _parts(part: Mapping[str, Any], base: Path, total: float) -> list[dict[str, Any]]:
    """The sources of one entry of ``datasets``; ``total`` is the sum of all fractions."""
    split = str(part.get("split") or "train")
    files = common.files_of(part.get("data_files"), split)
    share = None if part.get("fraction") is None else float(part["fraction"]) / total / max(1, len(files))
    extra = {} if share is None else {"share": round(share, 6)}
    if files:
        folder = Path(str(part.get("data_dir") or ""))
        return [{"data": str(common.local(str(folder / f), base) or folder / f), **extra} for f in files]
    return [{"data": common.dataset(str(part["path"]), part.get("name"), split, base=base), **extra}]


def _lengths(t: Translation) -> None:
    if "max_length" in t.file_values and t.value("max_length") is None:
        t.put(
            "max_tokens",
            common.NO_LIMIT,
            "max_length",
            changed=True,
            why="nothing is truncated below the model's context",
        )
    else:
        t.put("max_tokens", t.integer("max_length", 1024), "max_length")
    t.idle("truncation_mode", "the end is cut off, as with keep_start") if t.value(
        "truncation_mode", "keep_start"
    ) == "keep_start" else t.lose("truncation_mode", "the end is cut off, as with keep_start")
    t.lose("max_completion_length", "prompt and answer share one limit, max_tokens")


def _adapter(t: Translation) -> None:
    names = "lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save lora_task_type use_rslora use_dora"
    if not t.switch("use_peft"):
        t.idle("use_peft", "off: all weights train")
        t.idle_all({"use_peft is off": names})
        t.lose_all({"4 bits need an adapter": "load_in_4bit load_in_8bit"})
        return
    kind = "dora" if t.switch("use_dora") else "rslora" if t.switch("use_rslora") else "lora"
    common.low_rank(t, rank=("lora_r", 16), alpha=("lora_alpha", 32.0), kind=kind)
    t.put("adapter", kind, "use_peft", *[k for k in ("use_dora", "use_rslora") if k[4:] == kind])
    t.idle_all({"off": "use_dora use_rslora"})
    common.targets(t, "lora_target_modules", t.value("lora_target_modules"), t.text("model_name_or_path"))
    common.low_bits(t, 4 if t.switch("load_in_4bit") else None, "load_in_4bit")
    t.lose("load_in_8bit", "only 4 bits are supported (quantize: 4bit)")
    t.settings.setdefault("lora_rank", 16)
    if "lora_dropout" not in t.file_values:
        t.change("use_peft", f"TRL's default lora_dropout is 0.05; {common.NO_DROPOUT}")


def _sft(t: Translation) -> None:
    t.settings["method"] = "sft"
    t.idle("packing", "rows are always packed, and never attend to each other")
    field = t.text("dataset_text_field", "text")
    if field != "text":
        t.settings["columns"] = {"text": field}
        t.put("columns", {"text": field}, "dataset_text_field")
    t.idle("dataset_text_field", "text, as here")
    if "completion_only_loss" in t.file_values and not t.switch("completion_only_loss", True):
        t.lose("completion_only_loss", "", ())
        t.change("completion_only_loss", "prompts are never learned, only answers")
    t.idle("completion_only_loss", "always: prompts are never learned")
    if "assistant_only_loss" in t.file_values and not t.switch("assistant_only_loss"):
        t.change("assistant_only_loss", "only the assistant's turns of a conversation are learned, always")
    t.idle("assistant_only_loss", "always: only the assistant's turns of a conversation are learned")
    _ends(t)
    losses = texts(t.value("loss_type", "nll"))
    if losses not in (["nll"], ["chunked_nll"]):
        t.lose("loss_type", "sft is the negative log-likelihood")
    t.idle("loss_type", "the negative log-likelihood, as here")


def _ends(t: Translation) -> None:
    if t.has("eos_token"):
        t.put("eos_token", t.text("eos_token"), "eos_token")
    if t.has("chat_template_path"):
        path = t.text("chat_template_path")
        if path.endswith(".jinja"):
            t.put("chat_template", path, "chat_template_path")
        else:
            t.lose("chat_template_path", "give the template's Jinja file as chat_template, not a model that has it")


def _reference(t: Translation) -> None:
    if t.switch("precompute_ref_log_probs"):
        t.put("reference", "cached", "precompute_ref_log_probs")
    t.idle("precompute_ref_log_probs", "off: the reference is computed alongside the policy")
    if t.switch("sync_ref_model"):
        t.put("reference_sync_steps", t.integer("ref_model_sync_steps", 512), "ref_model_sync_steps", "sync_ref_model")
        t.put("reference_mixup", t.number("ref_model_mixup_alpha", 0.6), "ref_model_mixup_alpha")
    t.idle_all({"the reference does not move": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"})


def _dpo(t: Translation) -> None:
    _reference(t)
    trl_dpo(t)


def _kto(t: Translation) -> None:
    t.settings["method"] = "kto"
    _reference(t)
    if texts(t.value("loss_type", "kto")) != ["kto"]:
        t.lose("loss_type", "for single labelled answers there are kto and bco; apo_zero is for pairs")
    t.idle("loss_type", "kto, as here")
    t.put("beta", t.number("beta", 0.1), "beta")
    for key in ("desirable_weight", "undesirable_weight"):
        if t.has(key):
            t.put(key, t.number(key), key)


def _reward(t: Translation) -> None:
    t.settings["method"] = "reward"
    _ends(t)
    t.put("centering", t.number("center_rewards_coefficient"), "center_rewards_coefficient")
    t.change("max_length", "longer rows are truncated here; TRL skips them", "max_tokens")
