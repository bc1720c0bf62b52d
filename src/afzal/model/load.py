"""Models and tokenizers in and out of folders that the ecosystem loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afzal.errors import AfzalError
from afzal.model.attention import stock_attention
from afzal.model.folder import (
    inspect_model_folder,
    inspect_tokenizer_folder,
    load_kwargs,
    local_folder,
    tokenizer_kwargs,
)

_VIRTUAL_TOKENS = {"PREFIX_TUNING", "P_TUNING", "CARTRIDGE"}


def load_model(path: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model with dropout off, from a folder or a hub id.

    An adapter's folder gives its base model with the adapter on it, and only the adapter trains.

    Raises:
        AfzalError: the folder is missing, hostile (code, pickles, links outside) or no causal language model.
    """
    from transformers import AutoModelForCausalLM

    with no_bars():
        load = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype, **load_kwargs())
        model = loading(path, inspect_model_folder, partial(_with_adapter, load))
    model.to(device)
    switch_off_dropout(model)
    return model.eval()


def _with_adapter(load: Callable[[str], Any], folder: str) -> Any:
    base = adapter_base(folder)
    if base is None:
        return load(folder)
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), folder, is_trainable=True)


def adapter_base(folder: str | Path) -> str | None:
    """The base model that an adapter's folder names; None for a folder with a model of its own.

    Raises:
        AfzalError: the adapter is prefix or prompt tuning: its virtual tokens have no place in the batches here.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.exists() or (Path(folder) / "config.json").exists():
        return None
    about = json.loads(file.read_text(encoding="utf-8"))
    kind = str(about.get("peft_type"))
    if "PROMPT" in kind or kind in _VIRTUAL_TOKENS:
        raise AfzalError(
            f"{folder} is an adapter of type {kind}, which is not supported",
            why="its virtual tokens before the prompt have no place in a batch",
            remedy="start from its base model, or from a LoRA adapter",
        )
    base = about.get("base_model_name_or_path")
    return base if isinstance(base, str) else None  # anything else is refused where the folder is inspected


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        AfzalError: no tokenizer there.
    """
    from transformers import AutoTokenizer

    return loading(path, _inspect_tokenizer, partial(AutoTokenizer.from_pretrained, **tokenizer_kwargs()))


def context_tokens(path: str) -> int | None:
    """Longest sequence the model has positions for, in tokens, from its configuration alone; None when unlimited.

    Raises:
        AfzalError: no configuration there.
    """
    from transformers import AutoConfig

    path = adapter_base(path) or path
    config = loading(path, inspect_model_folder, partial(AutoConfig.from_pretrained, **tokenizer_kwargs()))
    return context_of(config)


def context_of(config: Any) -> int | None:
    """Positions a model's configuration allows, in tokens; None when unlimited."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_of(model: Any) -> int:
    """V, the number of tokens that the model gives logits for."""
    return int(model.config.get_text_config().vocab_size)


def _inspect_tokenizer(folder: Path) -> None:
    try:
        inspect_tokenizer_folder(folder)
    except AfzalError:
        inspect_model_folder(folder)  # where more is missing than a tokenizer, that is the thing to tell
        raise


def save_model(model: Any, tokenizer: Any, path: Path) -> None:
    """Write weights (safetensors), configuration, generation configuration, tokenizer and chat template to a folder."""
    with stock_attention(model), no_bars():
        model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def frozen_copy(model: Any) -> Any:
    """The same weights once more, never trained: a reference made from memory, not reloaded from disk."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, in the modules and where attention reads it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module.__dict__.get("attention_dropout"), float):
            module.__dict__["attention_dropout"] = 0.0


def add_lora(
    model: Any, *, rank: int, alpha: float, targets: str | list[str] = "all-linear", also: Sequence[str] = ()
) -> Any:
    """The model wrapped with fresh LoRA adapters (no dropout, B = 0: it starts as the identity); only they train.

    Args:
        alpha: scale of the adapters is ``alpha / rank``.
        also: modules to train whole beside them, such as ``lm_head``.
    """
    from peft import LoraConfig, get_peft_model

    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] - a float works, and rsLoRA needs it
        target_modules=targets,
        lora_dropout=0.0,
        modules_to_save=list(also) or None,
        task_type="SEQ_CLS" if is_classifier else "CAUSAL_LM",
    )
    return get_peft_model(model, config)


def recompute_activations(model: Any) -> None:
    """Keep only each block's input for the backward pass and compute the rest again: less memory, same numbers."""
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.2x on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()  # the blocks recompute in training mode only; dropout is off either way


def compile_layers(model: nn.Module) -> None:
    """Compile the parts whose shapes are those of the row alone: feed-forward layers and norms (torch.compile)."""
    for module in model.modules():
        if type(module).__name__.endswith(("MLP", "RMSNorm")):
            module.compile(dynamic=True)


def is_adapted(model: Any) -> bool:
    """Whether the model carries PEFT adapters that can be switched off."""
    return hasattr(model, "disable_adapter")


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where present, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AfzalError(
            f"device {name!r} cannot be used", why=str(error).splitlines()[0], remedy="device=auto or device=cpu"
        ) from error
    return device


@contextmanager
def no_bars() -> Iterator[None]:
    """A run has its own progress; the loader's bars would only stand between its lines."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    here, in_hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if here:
            logging.enable_progress_bar()
        if in_hub:
            enable_progress_bars()


def loading(path: str, inspect: Callable[[Path], None], load: Callable[[str], Any]) -> Any:
    """Find, inspect, load: nothing in a folder is used before it has been looked at."""
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise AfzalError(f"model folder {path!r} does not exist", remedy="check --model; a hub id looks like org/name")
    try:
        folder = local_folder(path)
        inspect(folder)
        return load(str(folder))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AfzalError(
            f"{path!r} does not load",
            why=first,
            remedy="pass a folder with config.json, safetensors weights and a tokenizer, or a reachable hub id",
        ) from error
