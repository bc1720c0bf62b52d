"""Configurations of axolotl: ``rl: dpo``, ``datasets`` with types and field maps, ``sequence_len``.

Defaults are those of axolotl 0.19 and of the TRL trainers that it wraps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError

from . import common, unmapped_keys
from .translation import Translation, is_off, texts

NAME = "axolotl"
METHODS = ("sft", "reward", "dpo", "ipo", "kto", "orpo", "simpo", "grpo")

IDENTIFYING_KEYS = (
    "base_model sequence_len micro_batch_size rl datasets test_datasets val_set_size adapter lora_r lora_target_linear "
    "lora_target_modules num_epochs optimizer lr_scheduler chat_template special_tokens train_on_inputs "
    "evals_per_epoch saves_per_epoch sample_packing flash_attention load_in_4bit load_in_8bit dataset_prepared_path "
    "rl_beta trl pad_to_sequence_len wandb_name hub_model_id orpo_alpha kto_desirable_weight dpo_beta "
    "gradient_checkpointing"
)


_OFFLOADED = ("offload", "unsloth")  # checkpoints are moved to the machine's memory or disk


def translate(t: Translation, path: Path, *, method: str | None, processes: int) -> None:
    """Translate a configuration of axolotl into Afzal's settings.

    Raises:
        AfzalError: the method has no counterpart.
    """
    rl = method or t.text("rl", "reward" if t.switch("reward_model") else "sft")
    if rl not in METHODS:
        raise AfzalError(f"rl: {rl} has no counterpart", where=str(path), remedy=" ".join(METHODS))
    if t.has("base_model"):
        t.put("model", t.text("base_model"), "base_model")
    keys = ("micro_batch_size", "gradient_accumulation_steps")
    size = t.integer("batch_size") if t.has("batch_size") else None
    per_step = t.integer(keys[0], 1) * t.integer(keys[1], 1) if size is None else size
    members = max(1, t.integer("tensor_parallel_size", 1))  # processes that compute the same rows
    if t.has("tensor_parallel_size"):
        t.put("tensor_parallel", members, "tensor_parallel_size")
    common.batch(t, per_step, max(1, processes // members), *(("batch_size",) if size is not None else keys))
    _method(t, rl)
    t.idle("rl", "sft")
    t.idle("reward_model", "off")
    _data(t, path.parent, rl)
    _optimisation(t)
    _templates(t)
    _adapter(t)
    _lengths(t)
    _hub(t)
    common.close(t, idle=unmapped_keys.AXOLOTL_IDLE, lost=unmapped_keys.AXOLOTL_LOST)


def _method(t: Translation, rl: str) -> None:
    inner = t.inner("trl")
    beta = float(inner.get("beta") or t.number("rl_beta", t.number("dpo_beta", 0.1)))
    key = "trl" if inner.get("beta") else "dpo_beta" if t.has("dpo_beta") and not t.has("rl_beta") else "rl_beta"
    if rl in ("sft", "reward"):
        t.put("method", rl, "reward_model" if rl == "reward" else "rl")
        if rl == "reward":
            t.put("centering", t.number("center_rewards_coefficient"), "center_rewards_coefficient")
        remark = t.lose if t.switch("train_on_inputs") else t.idle
        remark("train_on_inputs", "only answers are learned")
    elif rl in ("dpo", "ipo"):
        _dpo(t, rl, beta, key)
    elif rl == "kto":
        t.put("method", "kto", "rl")
        t.put("beta", beta, key)
        for name, setting_name in (
            ("kto_desirable_weight", "desirable_weight"),
            ("kto_undesirable_weight", "undesirable_weight"),
        ):
            if t.has(name):
                t.put(setting_name, t.number(name), name)
    elif rl == "orpo":
        t.put("method", "prefer", "rl")
        t.settings["objective"] = "orpo"
        lam = beta if t.has("rl_beta") or inner.get("beta") else t.number("orpo_alpha", 0.1)
        why = "lam here; TRL's likelihood term also learns the prompt"
        t.put(
            "objective_arg", {"lam": lam}, "orpo_alpha", *([key] if key in t.file_values else []), changed=True, why=why
        )
    elif rl == "simpo":
        t.put("method", "prefer", "rl")
        alpha = t.number("cpo_alpha", 1.0)
        t.put("objective", f"simpo+{alpha:g}*sft" if alpha else "simpo", "cpo_alpha")
        gamma = t.number("simpo_gamma", 0.5)
        t.put("objective_arg", {"beta": beta, "gamma": gamma}, key, "simpo_gamma")
    else:
        _grpo(t, inner)
    t.idle("train_on_inputs", "prompts are never learned")
    t.idle_all(
        {
            "belongs to another method": "rl_beta dpo_beta orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight "
            "kto_undesirable_weight dpo_label_smoothing dpo_use_weighting dpo_loss_type dpo_loss_weights trl "
            "center_rewards_coefficient precompute_ref_log_probs rpo_alpha dpo_norm_loss"
        }
    )


def _dpo(t: Translation, rl: str, beta: float, key: str) -> None:
    from .trl_losses import dpo_losses

    if t.switch("precompute_ref_log_probs"):
        t.put("reference", "cached", "precompute_ref_log_probs")
    losses = ["ipo"] if rl == "ipo" else texts(t.value("dpo_loss_type", "sigmoid"))
    names = ("rl",) if rl == "ipo" or not t.has("dpo_loss_type") else ("dpo_loss_type", "rl")
    smoothing = t.number("dpo_label_smoothing") if rl == "dpo" else 0.0
    dpo_losses(
        t,
        losses,
        [float(w) for w in t.value("dpo_loss_weights", [1.0] * len(losses))],
        {"beta": beta, "label_smoothing": smoothing, "tau": 0.05},
        {"loss_type": names, "beta": (key,), "label_smoothing": ("dpo_label_smoothing",)},
    )
    t.lose("dpo_use_weighting", "weighted DPO is an objective here: prefer with wpo")
    t.lose("rpo_alpha", "prefer with objective dpo+A*sft, or rpo, is that loss")


def _grpo(t: Translation, inner: Mapping[str, Any]) -> None:
    t.put("method", "grpo", "rl")
    functions = texts(inner.get("reward_funcs"))
    n = int(inner.get("num_generations") or 8)
    t.put("n", n, "trl")
    t.put("batch_size", max(1, t.settings["batch_size"] // n), "trl")
    t.put("kl_coef", float(inner.get("beta") or 0.0), "trl")
    t.put("sample_tokens", int(inner.get("max_completion_length") or 512), "trl")
    t.put("temperature", float(inner.get("temperature") or 1.0), "trl")
    if functions:
        module, _, name = functions[0].rpartition(".")
        t.put("reward", f"{module}:{name}" if module else name, "trl")
    translated = ("beta", "num_generations", "max_completion_length", "temperature", "reward_funcs")
    ignored = [k for k, v in inner.items() if k not in translated and not is_off(v)]
    why = "batch_size counts prompts, the reward is a function of a prompt and an answer (docs/rewards.md)"
    t.change("trl", f"{why}; ignored: {', '.join(ignored) or 'nothing'}")
    if len(functions) > 1:
        t.change("trl", "only one reward is supported: write a function that adds them up", "reward")


def _optimisation(t: Translation) -> None:
    t.put("lr", t.number("learning_rate"), "learning_rate")
    common.schedule(t, "lr_scheduler", "cosine")
    common.warmup(t, 0.03)
    common.length(t, "num_epochs", 1.0)
    common.optimizer(t, "optimizer", "adamw_torch_fused")
    t.put("weight_decay", t.number("weight_decay"), "weight_decay")
    t.put("max_grad_norm", t.number("max_grad_norm", 1.0), "max_grad_norm")
    common.adam(t, "adam_epsilon")
    t.put("seed", t.integer("seed", 42), "seed", why="the order of the rows still differs")
    t.put("out", t.text("output_dir", "./model-out"), "output_dir")
    common.checkpoints(t)
    if t.has("logging_steps"):
        t.put("log_every_steps", max(1, int(t.number("logging_steps"))), "logging_steps")
    common.precision(t)
    if t.text("gradient_checkpointing").lower().startswith(_OFFLOADED):
        why = "the checkpoints stay on the device"
        t.put("activation_checkpointing", "full", "gradient_checkpointing", changed=True, why=why)
    else:
        common.recompute(t, "gradient_checkpointing")


def _lengths(t: Translation) -> None:
    t.put("max_tokens", t.integer("sequence_len", 512), "sequence_len")
    strategy = t.text("excess_length_strategy", "drop")
    why = f"longer rows are cut here, and counted; axolotl's {strategy} skips them" if strategy == "drop" else ""
    if strategy == "truncate":
        t.idle("excess_length_strategy", "longer rows are cut, as here")
    else:
        t.change("excess_length_strategy", why or "longer rows are cut here, and counted", "max_tokens")
        if "excess_length_strategy" not in t.file_values:
            t.change("sequence_len", why, "max_tokens")


def _hub(t: Translation) -> None:
    if t.has("hub_model_id"):
        why = "uploaded once, at the end; a new repository is private there, and here unless hub_public is set"
        t.put("push_to_hub", t.text("hub_model_id"), "hub_model_id", why=why)
    t.idle_all({"nothing is uploaded, or only once, at the end": "hub_model_id hub_strategy hub_revision"})


def _templates(t: Translation) -> None:
    tokens = t.inner("special_tokens")
    if tokens.get("eos_token"):
        t.put("eos_token", str(tokens["eos_token"]), "special_tokens")
    t.idle("special_tokens", "the padding token is never read, and the others come from the tokenizer")
    name, jinja = t.text("chat_template"), t.value("chat_template_jinja")
    if jinja:
        t.put("chat_template", str(jinja), "chat_template_jinja")
        t.idle("chat_template", "chat_template_jinja takes precedence")
    elif name == "chatml":
        t.put("chat_template", "chatml", "chat_template")
    elif name in ("tokenizer_default", "") or name.startswith("tokenizer_default"):
        t.idle("chat_template", "the tokenizer's own, as here")
    else:
        t.change("chat_template", "the tokenizer's own template is used; the name of a family means the same one")


def _adapter(t: Translation) -> None:
    kind = t.text("adapter").lower()
    if kind in ("lora", "qlora"):
        is_dora, is_rslora = t.switch("peft_use_dora"), t.switch("peft_use_rslora")
        style = "dora" if is_dora else "rslora" if is_rslora else "lora"
        t.put(
            "adapter",
            style,
            "adapter",
            *(["peft_use_dora"] if is_dora else []),
            *(["peft_use_rslora"] if is_rslora else []),
        )
        common.low_rank(t, rank=("lora_r", 8), alpha=("lora_alpha", None), kind=style)
        linear = t.switch("lora_target_linear")
        modules = "all-linear" if linear else t.value("lora_target_modules")
        key = "lora_target_linear" if linear else "lora_target_modules"
        common.targets(t, key, modules, t.text("base_model"))
        is_4bit = kind == "qlora" or t.switch("load_in_4bit")
        common.low_bits(t, 4 if is_4bit else None, *(("load_in_4bit",) if t.has("load_in_4bit") else ("adapter",)))
        t.lose("load_in_8bit", "only 4 bits are supported (quantize: 4bit)")
        if t.has("lora_model_dir"):
            why = "the adapter's folder becomes the model and the reference, with its weights merged"
            t.put("model", t.text("lora_model_dir"), "lora_model_dir", changed=True, why=why)
    elif kind:
        t.lose("adapter", "only lora and qlora are supported")
    t.lose_all({"bits need an adapter": "load_in_4bit load_in_8bit"})
    t.idle_all(
        {
            "belongs to an adapter, and there is none": "lora_r lora_alpha lora_dropout lora_target_linear "
            "lora_target_modules lora_modules_to_save lora_model_dir peft_use_dora peft_use_rslora peft"
        }
    )


def _data(t: Translation, base: Path, rl: str) -> None:
    sources = [source for entry in t.entries("datasets") for source in _sources(t, entry, base, rl, "datasets")]
    if sources:
        common.one_or_mixture(t, sources, "datasets")
    tests = [source for entry in t.entries("test_datasets") for source in _sources(t, entry, base, rl, "test_datasets")]
    size = t.number("val_set_size")
    if tests:
        t.put("eval_data", tests[0]["data"], "test_datasets")
        if len(tests) > 1:
            t.lose("test_datasets", "only one held-out data set is supported: give a file of sources as eval_data")
    elif size > 0:
        common.share_held_out(t, size, "val_set_size")
    else:
        t.put(
            "eval_fraction", 0.0, "val_set_size", why="nothing is held out; eval_fraction: 0.1 gives held-out metrics"
        )
    _evaluation(t, held_out=bool(tests) or size > 0)


def _evaluation(t: Translation, *, held_out: bool) -> None:
    steps = t.number("eval_steps")
    if held_out and steps >= 1:
        t.put("eval_every_steps", int(steps), "eval_steps")
    if held_out and t.has("early_stopping_patience"):
        t.put("early_stop_patience", t.integer("early_stopping_patience"), "early_stopping_patience")
    names = "eval_steps evals_per_epoch eval_strategy evaluation_strategy early_stopping_patience"
    for key in names.split():
        if held_out:
            t.note(key, "10 evaluations per run; set eval_every_steps for another number")
        else:
            t.idle(key, "nothing is held out")


# Layouts of axolotl's types: the part after the dot -> Afzal's format, and its fields by Afzal's names
_LAYOUTS: dict[str, tuple[str, dict[str, str]]] = {
    "prompt_pairs": ("question_pair", {"question": "prompt"}),
    "ultra": ("", {}),
    "intel": ("", {}),
    "icr": ("", {}),
    "argilla": ("", {}),
    "argilla_chat": ("", {}),
    "nectar": ("nectar", {}),
    "default": ("", {}),
}
_UNPAIRED: dict[str, tuple[str, dict[str, str]]] = {
    "prompt_pairs": ("unpaired_alpaca", {"question": "prompt"}),
    "ultra": ("unpaired_alpaca", {"question": "prompt"}),
}
_ENTRY = frozenset(["path", "split", "type", "data_files", "ds_type", "name", "trust_remote_code"])


def _sources(t: Translation, entry: Any, base: Path, rl: str, key: str) -> list[dict[str, Any]]:
    """The sources of one entry of ``datasets``, with the columns that its type implies."""
    if not isinstance(entry, Mapping) or not entry.get("path"):
        raise AfzalError(f"an entry of {key} has no path", remedy="- path: FILE, with type: ...")
    kind = entry.get("type")
    columns, style, reasons = _fields(entry, kind, rl)
    split = str(entry.get("split") or "train")
    files = common.files_of(entry.get("data_files"), split)
    if files:
        names = [str(common.local(f, base) or common.local(f"{entry['path']}/{f}", base) or f) for f in files]
    else:
        names = [common.dataset(str(entry["path"]), entry.get("name"), split, base=base)]
    ignored = [
        k for k, v in entry.items() if k not in _ENTRY and not k.startswith(("field_", "message_")) and not is_off(v)
    ]
    if ignored := [k for k in ignored if k not in ("roles", "chat_template", "chat_template_jinja", "conversation")]:
        reasons.append(f"ignored: {', '.join(ignored)}")
    if isinstance(kind, str) and kind.startswith("chatml") and not t.has("chat_template"):
        t.settings["chat_template"] = "chatml"
        reasons.append("chat_template: chatml")
    for why in reasons:
        t.change(key, f"{entry['path']}: {why}", "data")
    options = {"columns": columns, "format": style}
    return [{"data": name, **{k: v for k, v in options.items() if v}} for name in names]


def _fields(entry: Mapping[str, Any], kind: Any, rl: str) -> tuple[dict[str, str], str, list[str]]:
    """The columns, the format if it cannot be detected, and remarks."""
    reasons: list[str] = []
    if isinstance(kind, Mapping):
        field_names = {k: str(v) for k, v in kind.items() if k.startswith("field_") and v}
        prompt_field = field_names.get("field_prompt", field_names.get("field_instruction", "prompt"))
        answers = {
            k: field_names.get(f"field_{k}", k)
            for k in (("completion", "label") if rl == "kto" else ("chosen", "rejected"))
        }
        if rl == "sft":
            answers = {"output": field_names.get("field_output", "output")}
        style = {"kto": "unpaired_alpaca", "sft": "alpaca"}.get(rl, "question_pair")
        columns = {"question": prompt_field, **answers}
        if "field_system" in field_names:
            columns["system"] = field_names["field_system"]
        if custom_formats := [k for k, v in kind.items() if k.endswith("_format") and str(v) not in _PLAIN]:
            reasons.append(f"{', '.join(custom_formats)}: the chat template writes the turns")
        return {k: v for k, v in columns.items() if k != v}, style, reasons
    layout = str(kind or "default").rpartition(".")[2]
    style, columns = (_UNPAIRED if rl == "kto" else _LAYOUTS).get(layout, ("", {}))
    renamed = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected", "field": "text"}
    columns_given = {name: str(entry[k]) for k, name in renamed.items() if entry.get(k) and str(entry[k]) != name}
    if columns_given.get("messages") in ("conversations", "context"):
        del columns_given["messages"]
    if isinstance(kind, str) and kind.split(".")[0] in ("llama3", "zephyr"):
        reasons.append(f"type {kind}: the tokenizer's own chat template is used")
    return {**columns, **columns_given}, style, reasons


_PLAIN = ("{prompt}", "{chosen}", "{rejected}", "{completion}", "{instruction}", "{system}")
