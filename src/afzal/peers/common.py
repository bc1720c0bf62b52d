"""Translate keys that several trainers share: arguments of transformers' Trainer, adapters, and data paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.trackers import TRACKERS

from . import unmapped_keys
from .translation import Translation, is_off, texts

NO_LIMIT = 131_072
"""``max_tokens`` if the other trainer truncates nothing: longer than any row; the model's context still limits it."""

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused", "adamw_anyprecision"}
_SMALL_STATES = {
    "paged_adamw_32bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "adamw_torch_8bit",
}

NO_DROPOUT = "dropout is always off: the policy must equal the reference at the first step"


def close(t: Translation, *, idle: Mapping[str, str], lost: Mapping[str, str]) -> None:
    """Remark on the remaining keys, both the trainer's and the shared ones."""
    for table in (idle, unmapped_keys.SHARED_IDLE):
        t.idle_all(table)
    for table in (lost, unmapped_keys.SHARED_LOST):
        t.lose_all(table)


def trainer_arguments(t: Translation, defaults: Mapping[str, Any], processes: int) -> None:
    """Translate the arguments of transformers' Trainer that several trainers share.

    Args:
        defaults: the trainer's defaults that differ from those of transformers.
        processes: number of processes of the other trainer, whose batch size is per process; Afzal's is the total.
    """
    default = {
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "linear",
        "seed": 42,
        "weight_decay": 0.0,
        **defaults,
    }
    t.put("lr", t.number("learning_rate", default["learning_rate"]), "learning_rate")
    schedule(t, "lr_scheduler_type", default["lr_scheduler_type"])
    warmup(t)
    length(t, "num_train_epochs", default["num_train_epochs"])
    optimizer(t, "optim", "adamw_torch_fused")
    t.put("weight_decay", t.number("weight_decay", default["weight_decay"]), "weight_decay")
    norm = t.number("max_grad_norm", 1.0)
    t.put("max_grad_norm", max(norm, 0.0), "max_grad_norm")
    adam(t, "adam_epsilon")
    t.put("seed", t.integer("seed", default["seed"]), "seed", why="the order of the rows still differs")
    if t.has("output_dir"):
        t.put("out", t.text("output_dir"), "output_dir")
    checkpoints(t)
    if t.has("logging_steps"):
        steps = t.number("logging_steps")
        if steps >= 1:
            t.put("log_every_steps", int(steps), "logging_steps")
        else:
            t.idle("logging_steps", "a share of the run; Afzal logs every update")
    reporting(t)
    precision(t)
    if t.switch("use_cpu"):
        t.put("device", "cpu", "use_cpu", "no_cuda")
    t.idle("use_cpu", "the best available device is chosen")
    t.idle("no_cuda", "the best available device is chosen")
    recompute(t, "gradient_checkpointing", "activation_checkpointing")


def batch(t: Translation, items: int, processes: int, *keys: str) -> None:
    """Set the items per update, from those of one process in one step."""
    process_text = f"{processes} processes" if processes > 1 else "one process; --processes N for several"
    t.put("batch_size", items * processes, *keys, changed=True, why=f"items per update, of {process_text}")


def schedule(t: Translation, key: str, default: str) -> None:
    """Translate the learning-rate schedule."""
    name = t.text(key, default).lower().rpartition(".")[2]
    if name in _SCHEDULES:
        t.put("lr_schedule", _SCHEDULES[name], key)
    else:
        nearest = "constant" if "constant" in name else "cosine" if "cosine" in name or name == "rex" else "linear"
        t.settings["lr_schedule"] = nearest
        t.lose(key, f"only constant, linear and cosine are supported: {nearest} is used")


def warmup(t: Translation, default: float = 0.0) -> None:
    """Translate the linear warm-up: a number of updates, or a share of them."""
    keys = ("warmup_steps", "warmup_ratio")
    scheduled = t.text("lr_scheduler_type", t.text("lr_scheduler"))
    if scheduled == "constant":
        t.settings["warmup"] = 0.0
        for key in keys:
            t.lose(key, f"{t.peer} ignores it with a constant learning rate; constant_with_warmup uses it")
        return
    steps, ratio = t.number("warmup_steps"), t.number("warmup_ratio")
    if not any(t.has(key) for key in keys):
        t.put("warmup", default, *keys)
        return
    t.put(
        "warmup",
        steps if steps > 0 else ratio,
        "warmup_steps" if steps > 0 or not t.has("warmup_ratio") else "warmup_ratio",
    )
    for key in keys:
        t.idle(key, "the other of the two takes precedence")


def length(t: Translation, key: str, default: float) -> None:
    """Translate the length of the run: epochs, or a number of updates that takes precedence."""
    steps = t.integer("max_steps", -1)
    if steps > 0:
        why = f"{t.peer} repeats the data until max_steps: epochs is set so large that it never ends the run first"
        t.put("max_steps", steps, "max_steps", changed=True, why=why)
        t.settings["epochs"] = float(steps)
        t.idle(key, "max_steps decides")
        return
    t.idle("max_steps", "no limit")
    t.put("epochs", t.number(key, default), key)


def optimizer(t: Translation, key: str, default: str) -> None:
    """Translate the optimizer: AdamW, RMSprop or plain gradient descent; 8-bit and paged states become float32."""
    name = t.text(key, default).lower().rpartition(".")[2]
    if name in _OPTIMIZERS:
        t.put("optimizer", "adamw", key)
    elif name in _SMALL_STATES:
        t.put(
            "optimizer", "adamw", key, changed=True, why="its state is kept in float32; offload: optimizer saves memory"
        )
    elif name in ("rmsprop", "sgd"):
        t.put("optimizer", name, key)
    else:
        t.settings["optimizer"] = "adamw"
        t.lose(key, "only adamw, rmsprop and sgd are supported: adamw is used")


def adam(t: Translation, epsilon: str) -> None:
    """Translate the parameters of AdamW that are given."""
    if t.settings.get("optimizer") != "adamw":
        t.lose_all({"the optimizer is not AdamW": f"adam_beta1 adam_beta2 {epsilon}"})
        return
    for key, into in (("adam_beta1", "adam_beta1"), ("adam_beta2", "adam_beta2"), (epsilon, "adam_eps")):
        if t.has(key):
            t.put(into, t.number(key), key)


def checkpoints(t: Translation) -> None:
    """Translate how often a run saves checkpoints."""
    steps = t.number("save_steps")
    if t.text("save_strategy", "steps") == "steps" and steps >= 1:
        t.put(
            "save_every_steps", int(steps), "save_steps", why="in addition to one every 10 minutes (save_every_minutes)"
        )
    t.idle("save_steps", "a checkpoint is written every 10 minutes (save_every_minutes)")
    if t.has("save_total_limit"):
        t.put("keep_checkpoints", t.integer("save_total_limit"), "save_total_limit")


def reporting(t: Translation) -> None:
    """Translate the trackers that Afzal supports; metrics.jsonl replaces the others."""
    trackers = texts(t.value("report_to"))
    if supported := [name for name in trackers if name in TRACKERS]:
        others = [name for name in trackers if name not in TRACKERS]
        t.put("report_to", supported, "report_to", why=f"not {', '.join(others)}" if others else "")


def precision(t: Translation) -> None:
    """Translate the number format of the forward pass."""
    if t.has("bf16") and not t.switch("fp16") and (kind := t.text("bf16").lower()) != "auto":
        t.put("dtype", "bf16" if kind == "full" or t.switch("bf16") else "fp32", "bf16")
    t.idle("bf16", "auto: bf16 on a GPU that supports it")
    t.lose("fp16", "fp16 overflows in log-probs; dtype auto uses bf16 where it is fast, else fp32")


def recompute(t: Translation, *keys: str) -> None:
    """Translate gradient checkpointing, which changes no number."""
    for key in keys:
        if t.has(key):
            t.put("activation_checkpointing", "full" if t.switch(key) else "none", key)


def evaluation(t: Translation, split: str, keys: str) -> None:
    """Translate when the held-out part is evaluated.

    Args:
        split: where the held-out part comes from; "" if nothing is held out.
        keys: names of the strategy's key, separated by spaces; the first one given counts.
    """
    names = keys.split()
    strategy = next((t.text(key) for key in names if t.has(key)), "no").lower().rpartition(".")[2]
    if strategy == "no" or not split:
        t.put("eval_fraction", 0.0, *names, why="nothing is held out; eval_fraction: 0.1 gives held-out metrics")
        t.idle("eval_steps", "nothing is held out")
        return
    every = t.number("eval_steps", t.number("logging_steps"))
    if strategy == "steps" and every >= 1:
        t.put("eval_every_steps", int(every), "eval_steps", *names)
    else:
        why = "10 evaluations per run; set eval_every_steps for another number"
        for key in (*names, "eval_steps"):
            t.note(key, why)
    t.idle("eval_on_start", "always: the first evaluation is at the start")


def share_held_out(t: Translation, size: float, key: str) -> None:
    """Set the held-out part from a share or a number of rows, greater than 0."""
    if size < 1:
        t.put("eval_fraction", size, key)
        return
    t.settings["eval_fraction"] = 0.1
    t.change(key, f"a number of rows, {size:g}; Afzal takes a share, here a tenth", "eval_fraction")


def low_rank(t: Translation, *, rank: tuple[str, int], alpha: tuple[str, float | None], kind: str = "lora") -> None:
    """Translate a LoRA adapter; ``rank`` and ``alpha`` hold the trainer's key and default."""
    if kind != "lora":
        t.settings["adapter"] = kind
    r = t.integer(rank[0], rank[1])
    t.put("lora_rank", r, rank[0])
    t.put("lora_alpha", t.number(alpha[0], 2.0 * r if alpha[1] is None else alpha[1]), alpha[0])
    t.lose("lora_dropout", NO_DROPOUT)
    t.lose_all(
        {
            "only the adapter trains": "lora_modules_to_save additional_target",
            "one rank and one learning rate for the whole adapter": "lora_rank_pattern lora_alpha_pattern "
            "loraplus_lr_ratio lora_target_parameters",
            "adapters start as usual: A random, B zero": "pissa_init peft_init_lora_weights loftq_config",
        }
    )
    t.idle_all(
        {"belongs to an option that is lost or off": "loraplus_lr_embedding pissa_iter pissa_convert lora_task_type"}
    )


def targets(t: Translation, key: str, modules: Any, model: str) -> None:
    """Set the modules that get an adapter; if none are named, those that PEFT chooses for the model's family."""
    names = texts(modules)
    if names in (["all"], ["all-linear"]):
        t.change(key, "every linear layer of the blocks, which is the default here", "lora_targets")
    elif names:
        t.put("lora_targets", names, key)
    else:
        family = _family(model)
        matching = (names for name, names in _TARGETS.items() if name.replace("_", "") in family.replace("_", ""))
        chosen = next(matching, ["q_proj", "v_proj"])
        t.put("lora_targets", chosen, key, why="PEFT's choice for the family; leave it out for every linear layer")


_TARGETS = {
    "gpt2": ["c_attn"],
    "gpt_bigcode": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "pythia": ["query_key_value"],
    "bloom": ["query_key_value"],
    "falcon": ["query_key_value"],
    "mpt": ["Wqkv"],
}


def _family(model: str) -> str:
    """The model family: as stated in a local folder; for a hub id its name, which usually contains the family."""
    try:
        return str(json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return model.lower().replace("-", "_")


def low_bits(t: Translation, bits: Any, *keys: str) -> None:
    """Translate quantisation of the base model under an adapter."""
    if bits == 4:
        t.put("quantize", "4bit", *keys)
    for key in keys:
        t.lose(key, "only 4 bits are supported (quantize: 4bit), and only under an adapter")


def dataset(path: str, config: Any, split: Any, *, base: Path, default_split: str = "train") -> str:
    """Afzal's name of a data set: the path of a file or folder, or ``owner/name:config@split`` on the hub.

    Args:
        base: folder of the configuration, to which its relative paths may refer.
    """
    existing = local(path, base)
    if existing is not None:
        return _split_of(existing, str(split or default_split))
    split_suffix = "" if is_off(split) or str(split) == "train" else f"@{split}"
    return f"{path}{f':{config}' if config else ''}{split_suffix}"


def local(path: str, base: Path) -> Path | None:
    """An existing file or folder, relative to the working directory or to ``base``; None if there is none."""
    return next((p for p in (Path(path).expanduser(), base / path) if p.exists()), None)


def _split_of(path: Path, split: str) -> str:
    """The one file of a split in a folder, as the datasets library would find it."""
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return str(path / split)
    if path.is_dir():
        matches = [f for f in sorted(path.rglob("*")) if f.is_file() and f.stem.split("-")[0].split("_")[0] == split]
        if len(matches) == 1:
            return str(matches[0])
    return str(path)


def files_of(data_files: Any, split: str) -> list[str]:
    """The files of a split, given as text, a list, or a mapping of splits."""
    if isinstance(data_files, Mapping):
        data_files = data_files.get(split, [])
    return [data_files] if isinstance(data_files, str) else [str(file) for file in data_files or []]


def one_or_mixture(t: Translation, sources: list[dict[str, Any]], *keys: str) -> None:
    """Set a run's data: a single source as settings, several as a file of sources."""
    if len(sources) == 1 and not sources[0].keys() - {"data", "columns", "format"}:
        only = sources[0]
        t.put("data", only["data"], *keys)
        if only.get("columns"):
            t.settings["columns"] = only["columns"]
        if only.get("format"):
            t.settings["data_format"] = only["format"]
        return
    t.sources = sources
    t.put(
        "data", MIXTURE, *keys, changed=True, why="several data sets become a file of sources, written next to this one"
    )


MIXTURE = "mixture.yaml"
"""Placeholder in the settings for the file of sources until its path is known."""
