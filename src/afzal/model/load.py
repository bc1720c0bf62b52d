"""Load models and tokenizers from folders, and save them so that other tools can load them."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from afzal.errors import AfzalError
from afzal.folders.config_checks import wrong_token
from afzal.folders.guard import no_bars, reason
from afzal.folders.kinds import ADAPTER_CONFIG, adapter_config, is_adapter, stored_name
from afzal.folders.lazy_weights import LazyWeights
from afzal.folders.load import (
    blank_causal_model,
    load_causal_model,
    load_config,
    load_generation_config,
    model_folder,
)
from afzal.folders.load import load_tokenizer as load_tokenizer  # for callers that need both loaders
from afzal.model.adapters import (
    Adapter,
    adapter_base,
    add_adapter,
    is_adapted,
    load_adapter,
    positions_taken,
    virtual_tokens,
    why_reads_base,
)
from afzal.model.attention import keep_uncompiled, stock_attention
from afzal.model.last_block import compute_all
from afzal.model.norms import fuse_norms, own_norms
from afzal.model.sanity import not_finite, refuse_fault, refuse_unsound
from afzal.runs.environment import usable_cpus

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


def load_model(
    path: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Literal["4bit"] | None = None,
) -> Any:
    """A causal language model with dropout off, from a folder or a hub id.

    An adapter folder gives its base model with the adapter on it; only the adapter trains.

    Args:
        dtype: number format of the weights; with ``quantize``, of the unquantised weights and of the computation.
        quantize: hold the base model's linear layers in 4 bits; an adapter stays in float32.

    Raises:
        AfzalError: the folder is missing, hostile (code, pickles, links outside) or not a causal language model; or
            bitsandbytes is needed and not installed.
    """
    quantization = four_bit(dtype, device) if quantize else {}
    model = _with_adapter(partial(load_causal_model, dtype=dtype, **quantization), model_folder(path))
    if not quantize:  # quantised layers are already on the device
        model.to(device)
    switch_off_dropout(model)
    fuse_norms(model)
    refuse_unsound(model.eval(), path)
    settle_generation(model, path)
    return model


def blank_model(path: str) -> tuple[Any, LazyWeights]:
    """The model of :func:`load_model` on the CPU without the large weights of the (base) model, and their locations.

    The weights are not checked until they are read.

    Raises:
        AfzalError: as there; or the weights are not stored as they are in memory, or an adapter is computed from them.
    """
    folder = model_folder(path)
    if is_adapter(folder) and (why := why_reads_base(folder)):
        raise AfzalError(f"the adapter {path} {why}")
    weights: list[LazyWeights] = []

    def blank(base: str) -> Any:
        model, base_weights = blank_causal_model(base)
        weights.append(base_weights)
        return model

    model = _with_adapter(blank, folder)
    switch_off_dropout(model)
    fuse_norms(model)
    settle_generation(model.eval(), path)
    return model, weights[0]


def _with_adapter(load: Callable[[str], Any], folder: str) -> Any:
    base = adapter_base(folder)
    if base is None:
        return load(folder)
    base = _base_folder(base, folder)
    model = load_adapter(load(base), folder)
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = base  # the resolved path: the folder's own may be relative to the folder
    if (Path(folder) / "generation_config.json").exists():
        settings = load_generation_config(folder)
        if fault := wrong_token(settings.to_dict(), model.get_input_embeddings().num_embeddings):
            raise AfzalError(f"{folder}: {fault}", where="generation_config.json", remedy="correct it")
        model.get_base_model().generation_config = settings
    return model


def begin_with(model: Any, adapter: str) -> Any:
    """The model with an adapter from a folder that was trained on this exact model; only the adapter trains.

    Does not check that the two together compute finite numbers.

    Raises:
        AfzalError: the folder holds no adapter, it does not fit the model, or its weights are not all numbers.
    """
    folder = model_folder(adapter)
    if not is_adapter(folder):
        raise AfzalError(f"{adapter} is not an adapter", remedy="name the folder of a run that trained one")
    adapted = load_adapter(model, folder)
    switch_off_dropout(adapted)
    refuse_fault(not_finite((name, p) for name, p in adapted.eval().named_parameters() if p.requires_grad), adapter)
    return adapted


def _base_folder(base: str, adapter: str) -> str:
    """The inspected folder of an adapter's base model."""
    try:
        return model_folder(base)
    except AfzalError as error:
        if Path(base).exists():
            raise
        raise AfzalError(
            f"the base model {base!r} of {adapter} cannot be loaded",
            why=f"there is no such folder here or next to the adapter, and as a hub id: {error.why or error.what}",
            remedy="write the folder of the base model into base_model_name_or_path of adapter_config.json",
        ) from error


def four_bit(dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that hold linear layers in 4 bits (NF4) and compute in ``dtype``.

    The quantisation of QLoRA (Dettmers et al. 2023, arXiv 2305.14314), with quantised constants.

    Raises:
        AfzalError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise AfzalError(
            "quantize=4bit needs bitsandbytes, which is not installed",
            remedy="pip install bitsandbytes, or leave quantize out",
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def context_tokens(path: str) -> int | None:
    """Longest sequence the model has positions for, in tokens, from its configuration alone; None if unlimited.

    The virtual tokens of an adapter folder are subtracted.

    Raises:
        AfzalError: there is no configuration.
    """
    return remaining_context(context_of(config_of(path)), positions_taken(model_folder(path)))


def config_of(path: str) -> Any:
    """The configuration of the model in a folder; for an adapter folder, that of its base model.

    Raises:
        AfzalError: there is no configuration.
    """
    folder = model_folder(path)
    base = adapter_base(folder)
    return load_config(folder if base is None else _base_folder(base, folder))


def context_of_model(model: Any) -> int | None:
    """Like :func:`context_tokens`, for a model in memory."""
    return remaining_context(context_of(model.config), virtual_tokens(model))


def remaining_context(context: int | None, used: int) -> int | None:
    """Tokens left in a context after ``used`` are used; None if unlimited."""
    return None if context is None else context - used


def context_of(config: Any) -> int | None:
    """Positions a model's configuration allows, in tokens; None if unlimited."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in _POSITIONS)
    return next((n for n in lengths if isinstance(n, int) and n > 0), None)


def refuse_fewer_positions(model: Any, longest: int, what: str) -> None:
    """Check that a second model has positions for everything that the first is trained on.

    Args:
        longest: tokens of the longest sequence.
        what: the second model's name in messages.

    Raises:
        AfzalError: it has too few.
    """
    context = context_of_model(model)
    if context is not None and context < longest:
        raise AfzalError(
            f"{what} has {context} positions, and sequences may have {longest} tokens", remedy=f"max_tokens={context}"
        )


def vocabulary_of(model: Any) -> int:
    """V, the number of tokens that the model gives logits for."""
    return int(model.config.get_text_config().vocab_size)


def width_of(config: Any) -> int:
    """Features of a position in the language model's residual stream; 0 if its configuration does not say."""
    return int(getattr(config.get_text_config(), "hidden_size", None) or 0)


def save_model(model: Any, tokenizer: Any, path: Path) -> None:
    """Write weights (safetensors), configuration, generation configuration, tokenizer and chat template to a folder."""
    settle_generation(model, str(path))
    with stock_attention(model), no_bars():
        model.save_pretrained(path)
        if is_adapted(model):  # PEFT keeps the adapter only
            name_base(path, adapter_config(path).get("base_model_name_or_path"))
            if model.generation_config is not None:
                model.generation_config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    share_weights(path)


def share_weights(folder: Path) -> None:
    """Give the weights of a model folder the same permissions as its other files.

    Since 0.8, ``safetensors`` makes them readable by their owner alone, so a server that runs as another user cannot
    read them.
    """
    for config_file in [f for name in ("config.json", ADAPTER_CONFIG) if (f := folder / name).exists()]:
        for file in folder.glob("*.safetensors"):
            shutil.copymode(config_file, file)


def settle_generation(model: Any, path: str) -> None:
    """Make sure, before a run, that the model's generation settings can be saved after it.

    Some folders state a temperature without sampling, which transformers reads but refuses to write. They mean
    sampling, so it is switched on.

    Raises:
        AfzalError: transformers does not write the settings with sampling either.
    """
    settings = getattr(model, "generation_config", None)  # a classifier has none
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True
        try:
            settings.validate(strict=True)
        except ValueError as error:
            why, remedy = reason(error), "correct it, or remove it"
            raise AfzalError(f"{path} has generation settings that are invalid", why=why, remedy=remedy) from error


def name_base(adapter: Path, base: str | None) -> None:
    """Name a saved adapter's base model so that it is found from any folder: by hub id or absolute path."""
    if base:
        config = adapter_config(adapter) | {"base_model_name_or_path": stored_name(base)}
        (adapter / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def cast_parameters(model: nn.Module, dtype: torch.dtype, *, keep: Callable[[str], bool] = lambda name: False) -> None:
    """Cast the weights to a number format in place, as ``from_pretrained(dtype=...)`` does.

    Buffers keep theirs. Rotary frequencies are buffers: bfloat16 holds them to 0.4%, which is an angle of several
    radians after a thousand positions, and a model loaded in bfloat16 has them in float32. The weights that the family
    lists in ``_keep_in_fp32_modules_strict`` also stay in float32.

    Args:
        keep: whether the weight of this name stays as it is.
    """
    for name, p in model.named_parameters():
        if p.is_floating_point() and not keep(name) and not (dtype == torch.bfloat16 and stays_float32(model, name)):
            p.data = p.data.to(dtype)


def stays_float32(model: nn.Module, name: str) -> bool:
    """Whether `transformers` keeps the weight of this name in float32 in a model loaded in bfloat16."""
    base: Any = model.get_base_model() if is_adapted(model) else model  # pyright: ignore[reportCallIssue]
    patterns = getattr(base, "_keep_in_fp32_modules_strict", None) or ()
    return any(re.search(pattern.replace("*", ".*"), name) for pattern in patterns)


def frozen_copy(model: Any, device: torch.device | None = None) -> Any:
    """A second, never trained copy of the model: a reference made from memory, not reloaded from disk.

    Args:
        device: of the copied weights; default: the model's. Buffers stay on their device.
    """
    copies: dict[int, Any] = {}
    if device is not None:  # weights in this table are not copied again by deepcopy
        copies = {id(p): nn.Parameter(p.detach().to(device, copy=True)) for p in model.parameters()}
    return copy.deepcopy(model, copies).eval().requires_grad_(False)


# model types whose forward passes read dropout rates from the configuration
_RATES_OF_CONFIGURATION = {"falcon", "gptj", "gpt_neo", "persimmon"}


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate of the modules to 0, including ``layerdrop``. The configuration is unchanged."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                vars(module)[name] = 0.0


def drops_by_configuration(model: Any) -> bool:
    """Whether layers of the model apply dropout in training mode at rates read from the configuration in each pass."""
    config = model.config.get_text_config()
    rates = [value for name, value in vars(config).items() if "drop" in name and isinstance(value, float)]
    return config.model_type in _RATES_OF_CONFIGURATION and any(rates)


def add_lora(
    model: Any, *, rank: int, alpha: float, targets: str | list[str] = "all-linear", trained_in_full: Sequence[str] = ()
) -> Any:
    """The model wrapped with fresh LoRA adapters (no dropout, B = 0: it starts as the identity); only they train.

    Args:
        alpha: scale of the adapters is ``alpha / rank``.
        trained_in_full: modules to train in full alongside them, such as ``lm_head``.
    """
    return add_adapter(model, Adapter("lora", rank, alpha, targets), trained_in_full=trained_in_full)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile what benefits (torch.compile): whole blocks on a GPU, feed-forward layers and norms elsewhere.

    Tree attention, whose shapes follow the layout, runs uncompiled between the compiled parts of a block.
    """
    device = next(model.parameters()).device
    own_norms(model)
    compute_all(model)
    parts = compiled_parts(model, whole_blocks=device.type == "cuda")
    if parts and device.type == "cuda":
        keep_uncompiled()
    for module in parts:
        module.compile(dynamic=True, backend=backend)


def compiled_parts(model: nn.Module, *, whole_blocks: bool) -> list[nn.Module]:
    """The blocks of a model, as `transformers` names them; or the parts whose shapes depend on the row alone."""
    if whole_blocks:
        base: Any = model.get_base_model() if is_adapted(model) else model  # pyright: ignore[reportCallIssue]
        names = set(getattr(base, "_no_split_modules", None) or ())
        if blocks := [m for m in model.modules() if type(m).__name__ in names]:
            return blocks
    return [m for m in model.modules() if type(m).__name__.endswith(("MLP", "RMSNorm"))]


def pick_device(name: str) -> torch.device:
    """The device of this name. ``auto`` is CUDA if present, else the CPU. On the CPU, limit torch's threads."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AfzalError(
            f"device {name!r} cannot be used", why=str(error).splitlines()[0], remedy="device=auto or device=cpu"
        ) from error
    if device.type == "cpu":
        _keep_to_share()
    return device


def _keep_to_share() -> None:
    """Limit torch to the usable CPUs. It starts a thread per processor of the machine; in a container with a share of
    them, threads that wait for each other use the share up, and an update takes many times as long."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
