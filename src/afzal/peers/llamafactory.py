"""Configurations of LLaMA-Factory: ``stage``, ``pref_loss``, ``finetuning_type``, and data sets of dataset_info.json.

Defaults are those of LLaMA-Factory 0.9.5 and the Trainer of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError

from . import common, unmapped_keys
from .translation import Translation, is_off, texts

NAME = "LLaMA-Factory"
METHODS = ("sft", "rm", "ppo", "dpo", "kto")

IDENTIFYING_KEYS = (
    "stage finetuning_type lora_rank lora_target pref_loss pref_beta pref_ftx dpo_label_smoothing cutoff_len template "
    "dataset dataset_dir max_samples overwrite_cache overwrite_output_dir plot_loss preprocessing_num_workers val_size "
    "kto_chosen_weight kto_rejected_weight simpo_gamma reward_model quantization_bit adapter_name_or_path"
)
"""Keys by which a file is recognised as LLaMA-Factory's."""

_INFO = "dataset_info.json"
# pref_loss -> Afzal's objective, and its name for pref_beta
_LOSSES = {
    "sigmoid": ("dpo", "beta"),
    "hinge": ("hinge", "beta"),
    "ipo": ("ipo_mean", "beta"),
    "orpo": ("orpo", "lam"),
    "simpo": ("simpo", "beta"),
}


def translate(t: Translation, path: Path, *, method: str | None, processes: int) -> None:
    """Translate a configuration of LLaMA-Factory into Afzal's settings.

    Raises:
        AfzalError: the stage has no counterpart.
    """
    stage = method or t.text("stage", "sft")
    if stage not in METHODS:
        why = "continued pre-training on plain text is not a preference method" if stage == "pt" else ""
        raise AfzalError(f"stage {stage!r} has no counterpart", where=str(path), why=why, remedy=" ".join(METHODS))
    if t.has("model_name_or_path"):
        t.put("model", t.text("model_name_or_path"), "model_name_or_path")
    if t.value("model_revision", "main") != "main":
        t.lose("model_revision", "the hub's main revision is read: download the other one and give its folder")
    t.idle("model_revision", "main, as here")
    kind = {"rm": "reward"}.get(stage, stage)
    t.put("method", kind, "stage")
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    common.batch(t, t.integer(keys[0], 8) * t.integer(keys[1], 1), processes, *keys)
    _data(t, path.parent)
    {"dpo": _dpo, "kto": _kto, "reward": _reward, "ppo": _ppo}.get(kind, lambda _t: None)(t)
    common.trainer_arguments(t, {}, processes)
    if t.switch("disable_gradient_checkpointing"):
        t.put("activation_checkpointing", "none", "disable_gradient_checkpointing")
    t.idle("disable_gradient_checkpointing", "off")
    t.put("max_tokens", t.integer("cutoff_len", 2048), "cutoff_len")
    _template(t)
    _adapter(t)
    if t.has("early_stopping_steps") and t.settings.get("eval_fraction") != 0:
        t.put("early_stop_patience", t.integer("early_stopping_steps"), "early_stopping_steps")
    t.lose("early_stopping_steps", "nothing is held out")
    towers = "freeze_vision_tower freeze_multi_modal_projector freeze_language_model"
    if not t.switch("freeze_vision_tower", True) and kind != "reward":
        t.put("train_towers", True, "freeze_vision_tower")
    t.idle_all({"towers are frozen unless train_towers is set": towers})
    from .trl import hub

    hub(t)
    common.close(t, idle=unmapped_keys.LLAMA_FACTORY_IDLE, lost=unmapped_keys.LLAMA_FACTORY_LOST)
    for prefix in (
        "galore_",
        "apollo_",
        "badam_",
        "freeze_",
        "oft_",
        "asft_",
        "eaft_",
        "ppo_",
        "ref_model",
        "reward_model",
    ):
        for key in t.file_values:
            if key.startswith(prefix):
                t.idle(key, "belongs to an unused method or option")
    t.idle_all(
        {
            "belongs to an unused method": "pref_beta pref_loss pref_ftx simpo_gamma ld_alpha temperature top_p top_k "
            "pref_bco_weight dpo_label_smoothing kto_chosen_weight kto_rejected_weight max_new_tokens"
        }
    )


def _dpo(t: Translation) -> None:
    loss = t.text("pref_loss", "sigmoid")
    if loss not in _LOSSES:
        raise AfzalError(f"pref_loss {loss!r} has no counterpart", remedy=f"one of {', '.join(_LOSSES)}")
    name, strength = _LOSSES[loss]
    args: dict[str, Any] = {strength: t.number("pref_beta", 0.1)}
    smoothing, ftx = t.number("dpo_label_smoothing"), t.number("pref_ftx")
    bco = t.number("pref_bco_weight")
    sources = ["pref_loss"]
    if name == "simpo":
        args["gamma"] = t.number("simpo_gamma", 0.5)
        sources.append("simpo_gamma")
    if smoothing and name == "dpo":
        name, args["label_smoothing"] = "cdpo", smoothing
        sources.append("dpo_label_smoothing")
    if t.has("ld_alpha") and name == "dpo":
        name, args["alpha"] = "ld_dpo", t.number("ld_alpha")
        sources.append("ld_alpha")
    if ftx and name == "dpo":
        name, args["eta"] = "rpo", ftx
        sources.append("pref_ftx")
    elif ftx:
        name += f"+{ftx:g}*sft"
        t.change("pref_ftx", "Afzal averages over all tokens of an update, LLaMA-Factory over answers", "objective")
    if bco:
        name += f"+{bco:g}*bco_pair"
        sources.append("pref_bco_weight")
    if name == "dpo":
        t.put("method", "dpo", "stage", "pref_loss")
        t.put("beta", args["beta"], "pref_beta")
    else:
        t.put("method", "prefer", "stage")
        t.put("objective", name, *sources)
        t.put("objective_arg", args, "pref_beta", *[k for k in sources if k in ("simpo_gamma", "dpo_label_smoothing")])
    t.idle_all({"0, as here": "dpo_label_smoothing pref_ftx pref_bco_weight", "for simpo only": "simpo_gamma"})
    t.lose("ld_alpha", "for the sigmoid loss only (ld_dpo)")
    if t.has("ref_model") and name.split("+")[0] not in ("orpo", "simpo"):
        t.put("reference", t.text("ref_model"), "ref_model")
    t.lose_all(
        {
            "a reference must be a full model: merge its adapter (afzal export)": "ref_model_adapters",
            "a reference is not quantised": "ref_model_quantization_bit",
        }
    )


def _kto(t: Translation) -> None:
    t.put("beta", t.number("pref_beta", 0.1), "pref_beta")
    for key, into in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
        if t.has(key):
            t.put(into, t.number(key), key)
    t.lose("pref_ftx", "for pairs only (rpo)")


def _reward(t: Translation) -> None:
    t.put("centering", 0.0, "center_rewards_coefficient", why="LLaMA-Factory does not pull the scores towards 0")


def _ppo(t: Translation) -> None:
    if t.value("reward_model_type", "lora") == "api":
        raise AfzalError(
            "reward_model_type: api has no counterpart", remedy="reward: FILE.py:FUNCTION that asks the server"
        )
    why = (
        "a model folder with one score (afzal export turns an adapter into one); LLaMA-Factory's adapters are not read"
    )
    t.put("reward", t.text("reward_model"), "reward_model", changed=True, why=why)
    t.put("ppo_epochs", t.integer("ppo_epochs", 4), "ppo_epochs")
    t.put("minibatches", max(1, min(t.integer("ppo_buffer_size", 1), t.settings["batch_size"])), "ppo_buffer_size")
    if t.integer("ppo_buffer_size", 1) > 1:
        t.settings["batch_size"] *= t.integer("ppo_buffer_size")
    t.put("kl_coef", 0.2, "kl_coef", why="LLaMA-Factory's starting value, which it cannot change")
    t.put("kl_target", t.number("ppo_target", 6.0), "ppo_target")
    t.put("sample_tokens", t.integer("max_new_tokens", 1024), "max_new_tokens")
    t.put("temperature", t.number("temperature", 0.95), "temperature")
    why = "answers are sampled from the full distribution: tokens that are cut off could not be learned"
    t.lose("top_p", why, (1.0,))
    t.lose("top_k", why, (-1,))
    for key in ("top_p", "top_k"):
        if key not in t.file_values:
            t.change("stage", f"LLaMA-Factory samples with top_k 50 and top_p 0.7 by default; {why}")
    t.lose_all(
        {
            "rewards are used unchanged": "ppo_score_norm ppo_whiten_rewards",
            "a reward model has its own folder": "reward_model_adapters reward_model_quantization_bit",
        }
    )
    t.idle("reward_model_type", "a reward model is a folder, however it was trained")


def _template(t: Translation) -> None:
    name = t.text("template")
    if name == "chatml":
        t.put("chat_template", "chatml", "template")
    elif name in ("default", "empty", "vanilla"):
        t.lose("template", "write it as a Jinja file and give that as chat_template")
    else:
        t.change("template", "the tokenizer's own chat template is used; the name of a family means the same one")


def _adapter(t: Translation) -> None:
    kind = t.text("finetuning_type", "lora")
    if kind == "lora":
        style = "dora" if t.switch("use_dora") else "rslora" if t.switch("use_rslora") else "lora"
        t.put("adapter", style, "finetuning_type", *[k for k in ("use_dora", "use_rslora") if k[4:] == style])
        common.low_rank(t, rank=("lora_rank", 8), alpha=("lora_alpha", None), kind=style)
        common.targets(t, "lora_target", t.value("lora_target", "all"), "")
        bits = t.integer("quantization_bit") if t.has("quantization_bit") else None
        common.low_bits(t, bits, "quantization_bit")
        _earlier_adapter(t)
    elif kind == "full":
        t.idle("finetuning_type", "all weights train, as here without an adapter")
        t.lose("quantization_bit", "4 bits need an adapter")
        t.lose("adapter_name_or_path", "merge the adapter first: afzal export ADAPTER --out MODEL")
    else:
        t.lose("finetuning_type", "only lora and full are supported: all weights train")
    t.idle_all(
        {
            "off, or belongs to an adapter, and there is none": "use_dora use_rslora lora_rank lora_alpha lora_dropout "
            "lora_target additional_target loraplus_lr_ratio create_new_adapter"
        }
    )


def _earlier_adapter(t: Translation) -> None:
    """Translate an existing adapter: training continues it, or adds a new one on top."""
    names = texts(t.value("adapter_name_or_path"))
    if not names:
        return
    fresh = t.switch("create_new_adapter")
    t.idle("create_new_adapter", "a new adapter on the merged one" if fresh else "training continues with the adapter")
    if not fresh and t.settings["method"] not in ("ppo", "reward"):
        keys = ("adapter", "lora_rank", "lora_alpha", "lora_targets")
        for key in keys:
            t.settings.pop(key, None)
        t.remarks[:] = [r for r in t.remarks if r.into not in keys]
        t.put("adapter_from", names[-1], "adapter_name_or_path", why="the reference is the model without the adapter")
        t.idle_all(
            {"the adapter keeps its shape": "lora_rank lora_alpha lora_target use_dora use_rslora finetuning_type"}
        )
    else:
        why = "the adapter's folder becomes the model and the reference, with its weights merged"
        t.put("model", names[-1], "adapter_name_or_path", changed=True, why=why)
    if len(names) > 1:
        t.lose("adapter_name_or_path", "only one adapter is supported: merge the others first (afzal export)")


def _data(t: Translation, base: Path) -> None:
    folder = t.text("dataset_dir", "data")
    info = _info(folder, base)
    names = _names(t.value("dataset"))
    shares = [float(p) for p in texts(t.value("interleave_probs"))]
    sources = [_source(t, name, folder, info, base) for name in names]
    if len(shares) == len(sources) > 1:
        sources = [{**source, "share": share / sum(shares)} for source, share in zip(sources, shares, strict=True)]
        t.change("interleave_probs", "shares of an epoch", "data")
    if t.text("mix_strategy", "concat") != "concat":
        t.change(
            "mix_strategy",
            "within an epoch a small part is repeated and a large one is subsampled",
            "data",
        )
    t.idle("mix_strategy", "one after another, as here")
    t.idle("dataset_dir", "the data are given by their own paths")
    if sources:
        common.one_or_mixture(t, sources, "dataset")
    if info is None and names and folder != "ONLINE":
        t.change("dataset", f"no {_INFO} was found in {folder}: give the path of the file as data", "data")
    t.lose("max_samples", "all rows are used: cut the file, or set max_steps")
    _held_out(t, folder, info, base)


def _held_out(t: Translation, folder: str, info: Mapping[str, Any] | None, base: Path) -> None:
    names = _names(t.value("eval_dataset"))
    size = t.number("val_size")
    if names:
        t.put("eval_data", _source(t, names[0], folder, info, base)["data"], "eval_dataset")
        if len(names) > 1:
            t.lose("eval_dataset", "only one held-out data set is supported: give a file of sources as eval_data")
    elif size > 0:
        common.share_held_out(t, size, "val_size")
    t.idle("val_size", "nothing is held out by it")
    common.evaluation(t, "test" if names or size > 0 else "", "eval_strategy evaluation_strategy")
    if (names or size > 0) and "eval_fraction" in t.settings and names:
        del t.settings["eval_fraction"]
    if size > 0 and t.settings.get("eval_fraction") == 0.0:
        t.settings["eval_fraction"] = size if size < 1 else 0.1


def _names(value: Any) -> list[str]:
    return (
        [n.strip() for n in value.split(",") if n.strip()] if isinstance(value, str) else [str(n) for n in value or []]
    )


def _info(folder: str, base: Path) -> Mapping[str, Any] | None:
    """The entries of dataset_info.json, next to the configuration or in a parent folder."""
    places = [Path(), base, *list(base.resolve().parents)[:3]]
    for place in places:
        file = place / folder / _INFO
        if file.is_file():
            try:
                entries = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise AfzalError(f"{_INFO} cannot be read", where=str(file), why=str(error)) from None
            return {"": str(file.parent), **entries}
    return None


def _source(t: Translation, name: str, folder: str, info: Mapping[str, Any] | None, base: Path) -> dict[str, Any]:
    entry = (info or {}).get(name)
    if entry is None:
        if info is not None:
            t.change("dataset", f"{name} is not in {_INFO}: give the path of its file as data", "data")
        existing = common.local(name, base)
        return {"data": str(existing or (name if folder == "ONLINE" or "/" in name else f"{folder}/{name}.json"))}
    hub = entry.get("hf_hub_url")
    if hub:
        data = common.dataset(hub, entry.get("subset"), entry.get("split"), base=base)
    else:
        data = str(Path(str((info or {}).get("", folder))) / str(entry.get("file_name", name)))
    source: dict[str, Any] = {"data": data}
    if columns := _columns(entry):
        source["columns"] = columns
    if entry.get("num_samples") is not None:
        t.change("dataset", f"{name}: num_samples is ignored: all rows are used", "data")
    if tags := {
        k: v for k, v in (entry.get("tags") or {}).items() if _TAGS.get(k) not in (None, v) and v not in _ROLES
    }:
        t.change("dataset", f"{name}: tags {', '.join(tags)} are read only if they are common role names", "data")
    return source


_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_ROLES = ("role", "content", "user", "human", "assistant", "gpt", "system")
# Columns of dataset_info.json -> Afzal's names, by the formatting
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SHARED = {
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
    "system": "system",
    "messages": "conversations",
    "history": "history",
    "images": "images",
    "audios": "audios",
    "tools": "tools",
}


def _columns(entry: Mapping[str, Any]) -> dict[str, str]:
    """The columns whose names differ from those in Afzal's formats."""
    given_columns = dict(entry.get("columns") or {})
    roles = _SHARED if entry.get("formatting", "alpaca") != "alpaca" else {**_SHARED, **_ALPACA}
    columns = {roles[key]: str(column) for key, column in given_columns.items() if key in roles and not is_off(column)}
    default_names = ("messages", "conversations") if "conversations" in columns else ()
    return {name: column for name, column in columns.items() if name != column and column not in default_names}
