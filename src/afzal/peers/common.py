"""What several trainers say in the same words: arguments of the Trainer of transformers, adapters, paths of data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.trackers import TRACKERS

from . import names
from .translation import Translation, is_off, texts

NO_LIMIT = 131_072
"""``max_tokens`` where the other trainer cuts nothing: longer than any row, and never beyond the model's context."""

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
    """A word on the keys that are left, the trainer's own and those that it shares with others."""
    for table in (idle, names.SHARED_IDLE):
        t.idle_all(table)
    for table in (lost, names.SHARED_LOST):
        t.lose_all(table)


def trainer_arguments(t: Translation, defaults: Mapping[str, Any], processes: int) -> None:
    """The arguments of the Trainer of transformers that several trainers share.

    Args:
        defaults: where the trainer's defaults differ from those of transformers.
        processes: processes that the other trainer ran in; a batch is per process there and whole here.
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
    t.put("seed", t.whole("seed", default["seed"]), "seed", why="rows are drawn in another order all the same")
    if t.has("output_dir"):
        t.put("out", t.text("output_dir"), "output_dir")
    checkpoints(t)
    if t.has("logging_steps"):
        steps = t.number("logging_steps")
        if steps >= 1:
            t.put("log_every_steps", int(steps), "logging_steps")
        else:
            t.idle("logging_steps", "a share of the run; every update is written down here")
    reporting(t)
    precision(t)
    if t.switch("use_cpu"):
        t.put("device", "cpu", "use_cpu", "no_cuda")
    t.idle("use_cpu", "the device is chosen by what is there")
    t.idle("no_cuda", "the device is chosen by what is there")
    recompute(t, "gradient_checkpointing", "activation_checkpointing")


def batch(t: Translation, items: int, processes: int, *keys: str) -> None:
    """The items of one update, from what one process takes in one step."""
    many = f"{processes} processes" if processes > 1 else "one process; --processes N says of how many"
    t.put("batch_size", items * processes, *keys, changed=True, why=f"items per update, of {many}")


def schedule(t: Translation, key: str, default: str) -> None:
    """The course of the learning rate."""
    name = t.text(key, default).lower().rpartition(".")[2]
    if name in _SCHEDULES:
        t.put("lr_schedule", _SCHEDULES[name], key)
    else:
        nearest = "constant" if "constant" in name else "cosine" if "cosine" in name or name == "rex" else "linear"
        t.settings["lr_schedule"] = nearest
        t.lose(key, f"constant, linear and cosine are there: {nearest} is taken")


def warmup(t: Translation, default: float = 0.0) -> None:
    """Linear warm-up: updates, or a share of them."""
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
        t.idle(key, "the other one of the two decides")


def length(t: Translation, key: str, default: float) -> None:
    """Epochs, or a number of updates that decides alone."""
    steps = t.whole("max_steps", -1)
    if steps > 0:
        why = f"{t.peer} passes through the data until max_steps: epochs is large enough never to end the run first"
        t.put("max_steps", steps, "max_steps", changed=True, why=why)
        t.settings["epochs"] = float(steps)
        t.idle(key, "max_steps decides")
        return
    t.idle("max_steps", "no limit")
    t.put("epochs", t.number(key, default), key)


def optimizer(t: Translation, key: str, default: str) -> None:
    """AdamW, RMSprop or plain gradient descent; 8-bit and paged states are kept in full."""
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
        t.lose(key, "adamw, rmsprop and sgd are there: adamw is taken")


def adam(t: Translation, epsilon: str) -> None:
    """The parameters of AdamW, where they are given."""
    if t.settings.get("optimizer") != "adamw":
        t.lose_all({"the optimizer is another": f"adam_beta1 adam_beta2 {epsilon}"})
        return
    for key, into in (("adam_beta1", "adam_beta1"), ("adam_beta2", "adam_beta2"), (epsilon, "adam_eps")):
        if t.has(key):
            t.put(into, t.number(key), key)


def checkpoints(t: Translation) -> None:
    """How often a run saves itself."""
    steps = t.number("save_steps")
    if t.text("save_strategy", "steps") == "steps" and steps >= 1:
        t.put("save_every_steps", int(steps), "save_steps", why="besides those every 10 minutes (save_every_minutes)")
    t.idle("save_steps", "a checkpoint is written every 10 minutes (save_every_minutes)")
    if t.has("save_total_limit"):
        t.put("keep_checkpoints", t.whole("save_total_limit"), "save_total_limit")


def reporting(t: Translation) -> None:
    """The trackers that are there on both sides; others are left to metrics.jsonl."""
    asked = texts(t.value("report_to"))
    if known := [name for name in asked if name in TRACKERS]:
        others = [name for name in asked if name not in TRACKERS]
        t.put("report_to", known, "report_to", why=f"not {', '.join(others)}" if others else "")


def precision(t: Translation) -> None:
    """The number format of the forward pass."""
    if t.has("bf16") and not t.switch("fp16") and (kind := t.text("bf16").lower()) != "auto":
        t.put("dtype", "bf16" if kind == "full" or t.switch("bf16") else "fp32", "bf16")
    t.idle("bf16", "auto: bf16 on a GPU that has it")
    t.lose("fp16", "fp16 overflows in log-probs; dtype auto takes bf16 where there is one, else fp32")


def recompute(t: Translation, *keys: str) -> None:
    """Gradient checkpointing, which changes no number."""
    for key in keys:
        if t.has(key):
            t.put("activation_checkpointing", "full" if t.switch(key) else "none", key)


def evaluation(t: Translation, split: str, keys: str) -> None:
    """When the held-out part is evaluated; ``split`` says where it comes from, "" nowhere.

    Args:
        keys: the names of the strategy, the first that is given counts.
    """
    names = keys.split()
    strategy = next((t.text(key) for key in names if t.has(key)), "no").lower().rpartition(".")[2]
    if strategy == "no" or not split:
        t.put("eval_fraction", 0.0, *names, why="nothing is held out; eval_fraction: 0.1 shows held-out figures")
        t.idle("eval_steps", "nothing is held out")
        return
    every = t.number("eval_steps", t.number("logging_steps"))
    if strategy == "steps" and every >= 1:
        t.put("eval_every_steps", int(every), "eval_steps", *names)
    else:
        why = "10 evaluations per run; eval_every_steps changes that"
        for key in (*names, "eval_steps"):
            t.note(key, why)
    t.idle("eval_on_start", "always: the first figures are those of the start")


def share_held_out(t: Translation, size: float, key: str) -> None:
    """The held-out part, from a share of the rows or a number of them, more than 0."""
    if size < 1:
        t.put("eval_fraction", size, key)
        return
    t.settings["eval_fraction"] = 0.1
    t.change(key, f"{size:g} rows there; a share here: a tenth", "eval_fraction")


def low_rank(t: Translation, *, rank: tuple[str, int], alpha: tuple[str, float | None], kind: str = "lora") -> None:
    """A LoRA adapter: its rank and scale, by the trainer's key and default."""
    if kind != "lora":
        t.settings["adapter"] = kind
    r = t.whole(rank[0], rank[1])
    t.put("lora_rank", r, rank[0])
    t.put("lora_alpha", t.number(alpha[0], 2.0 * r if alpha[1] is None else alpha[1]), alpha[0])
    t.lose("lora_dropout", NO_DROPOUT)
    t.lose_all(
        {
            "only the adapter trains": "lora_modules_to_save additional_target",
            "one rank and one learning rate for the whole adapter": "lora_rank_pattern lora_alpha_pattern "
            "loraplus_lr_ratio lora_target_parameters",
            "adapters begin as usual: A random, B zero": "pissa_init peft_init_lora_weights loftq_config",
        }
    )
    t.idle_all({"of what is lost or off": "loraplus_lr_embedding pissa_iter pissa_convert lora_task_type"})


def targets(t: Translation, key: str, named: Any, model: str) -> None:
    """The modules that get an adapter; without a name, those that PEFT takes for the model's family."""
    names = texts(named)
    if names in (["all"], ["all-linear"]):
        t.change(key, "every linear layer of the blocks, which is the default here", "lora_targets")
    elif names:
        t.put("lora_targets", names, key)
    else:
        family = _family(model)
        named_so = (names for name, names in _TARGETS.items() if name.replace("_", "") in family.replace("_", ""))
        chosen = next(named_so, ["q_proj", "v_proj"])
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
    """The family that a local folder states; of a hub id its name, which usually holds it."""
    try:
        return str(json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return model.lower().replace("-", "_")


def low_bits(t: Translation, bits: Any, *keys: str) -> None:
    """A base model in few bits under an adapter."""
    if bits == 4:
        t.put("quantize", "4bit", *keys)
    for key in keys:
        t.lose(key, "4 bits are there (quantize: 4bit), and only under an adapter")


def dataset(path: str, config: Any, split: Any, *, beside: Path, default_split: str = "train") -> str:
    """How Afzal names a data set: a file or folder as it is, a hub data set as ``owner/name:config@split``.

    Args:
        beside: folder of the configuration, where its relative paths may begin.
    """
    found = local(path, beside)
    if found is not None:
        return _split_of(found, str(split or default_split))
    wanted = "" if is_off(split) or str(split) == "train" else f"@{split}"
    return f"{path}{f':{config}' if config else ''}{wanted}"


def local(path: str, beside: Path) -> Path | None:
    """The file or folder of a path, as seen from here or from the configuration; None where there is none."""
    return next((p for p in (Path(path).expanduser(), beside / path) if p.exists()), None)


def _split_of(path: Path, split: str) -> str:
    """The one file of a folder that holds a split, as the datasets library would find it."""
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return str(path / split)
    if path.is_dir():
        found = [f for f in sorted(path.rglob("*")) if f.is_file() and f.stem.split("-")[0].split("_")[0] == split]
        if len(found) == 1:
            return str(found[0])
    return str(path)


def files_of(data_files: Any, split: str) -> list[str]:
    """The files of a split, from text, a list, or an object of splits."""
    if isinstance(data_files, Mapping):
        data_files = data_files.get(split, [])
    return [data_files] if isinstance(data_files, str) else [str(file) for file in data_files or []]


def one_or_mixture(t: Translation, sources: list[dict[str, Any]], *keys: str) -> None:
    """The data of a run: a single source as settings, several as a file that names them."""
    if len(sources) == 1 and not sources[0].keys() - {"data", "columns", "format"}:
        only = sources[0]
        t.put("data", only["data"], *keys)
        if only.get("columns"):
            t.settings["columns"] = only["columns"]
        if only.get("format"):
            t.settings["data_format"] = only["format"]
        return
    t.sources = sources
    t.put("data", MIXTURE, *keys, changed=True, why="several data sets are a file of sources, written beside this one")


MIXTURE = "mixture.yaml"
"""Stands in the settings for the file of sources until its place is known."""
