"""PEFT adapters: created fresh, loaded from a folder, or swapped for their state at the start of training.

Low-rank adapters (LoRA, DoRA, rsLoRA) and IA3 change layers; a fresh one is the identity. Prefix tuning,
prompt tuning and p-tuning put virtual tokens before every prompt (:mod:`.virtual`); a fresh one makes the policy
differ from the base model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from afzal.errors import AfzalError
from afzal.folders.guard import quiet_peft
from afzal.folders.kinds import adapter_config, base_of, is_adapter
from afzal.folders.load import load_peft

Kind = Literal["lora", "dora", "rslora", "ia3", "prefix", "prompt", "p_tuning"]

# PEFT's names for the adapters that put virtual tokens before every row, and ours
_VIRTUAL = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning"}
_SELF_CONTAINED = {"LORA", "IA3", *_VIRTUAL}  # their files hold every weight, and PEFT opens them without the base's
_IA3_LAYERS = ("k_proj", "v_proj", "down_proj")
_LOW_RANK = ("lora", "dora", "rslora")
_REFUSED = {"CARTRIDGE", "CPT"}  # other kinds with virtual tokens; they need more than one row per batch
_FRESH = "afzal_fresh_adapter"  # attribute of a model whose adapter add_adapter has made
_DRAWN: tuple[Kind, ...] = ("prefix", "prompt")  # virtual tokens that start as those of drawn tokens


@dataclass(frozen=True, slots=True)
class Adapter:
    """Settings of a fresh adapter.

    Attributes:
        rank, alpha, targets: low-rank adapters only. A layer's update is scaled by alpha / rank, or with rsLoRA
            by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
        virtual_tokens: prefix, prompt and p_tuning only.
        excluded: names of modules that get no low-rank adapter or IA3, and neither do their submodules.
    """

    kind: Kind
    rank: int = 8
    alpha: float = 16.0
    targets: str | Sequence[str] = "all-linear"
    virtual_tokens: int = 20
    excluded: Sequence[str] = ()


def add_adapter(model: Any, adapter: Adapter, *, trained_in_full: Sequence[str] = (), unread: bool = False) -> Any:
    """The model with a fresh adapter without dropout; only the adapter trains.

    Low-rank adapters start with B = 0 and IA3 with factors of 1: the identity. The virtual tokens of prompt tuning
    start as embeddings of tokens drawn from the vocabulary (Lester et al. 2021, arXiv 2104.08691), those of prefix
    tuning as the keys and values that the model computes for such tokens (Li and Liang 2021, arXiv 2101.00190), and
    those of p-tuning as PEFT initialises them. The draws use torch's generator.

    Args:
        trained_in_full: modules to train in full alongside it, such as ``lm_head``; not with virtual tokens.
        unread: the model's weights have not been read. What starts from them, the virtual tokens of prompt and prefix
            tuning and DoRA's norms, has arbitrary values until :func:`afzal.train.shard.start_adapter_in_pieces`.

    Raises:
        AfzalError: the adapter does not fit the model.
    """
    from peft import get_peft_model

    matrices = _matrices(model)
    try:
        with quiet_peft():
            adapted = get_peft_model(model, _config(model, adapter, trained_in_full))
    except ValueError as error:
        first = str(error).strip().partition("\n")[0]
        raise AfzalError(
            f"adapter {adapter.kind} does not fit {type(model).__name__}",
            why=first,
            remedy=_fitting(adapter, [name for name in matrices if f"'{name}'" not in first], "not found" in first),
        ) from error
    setattr(adapted, _FRESH, True)
    if starts_from_drawn(adapted):
        _state_draw(adapted)
        if not unread:
            starting_table(adapted).copy_(drawn_tokens(adapted))
    return adapted


def _matrices(model: Any) -> list[str]:
    """Names of the layers that usually get low-rank adapters, in the form that ``lora_targets`` takes."""
    head = model.get_output_embeddings()
    linear = [name.rpartition(".")[2] for name, m in model.named_modules() if _is_matrix(m) and m is not head]
    return list(dict.fromkeys(linear))


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's


def _fitting(adapter: Adapter, matrices: Sequence[str], unknown: bool) -> str:
    """The remedy when PEFT cannot put an adapter on a model.

    Args:
        matrices: names of the model's layers that PEFT has not refused by name.
        unknown: the model has no layers with the given names.
    """
    if adapter.kind not in _LOW_RANK:
        return "adapter=lora"
    setting = f"lora_targets={','.join(matrices[:12]) or 'the names of single matrices'}"
    if unknown:
        return f"leave lora_targets out, or {setting}"
    return f"adapter=lora, or {setting}" if adapter.kind == "dora" else setting


def _config(model: Any, adapter: Adapter, trained_in_full: Sequence[str]) -> Any:
    import peft

    task = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    saved: Any = list(trained_in_full) or None
    prefixes = "|".join(map(re.escape, adapter.excluded))
    excluded: Any = rf"({prefixes})\..*" if prefixes else None
    n: Any = adapter.virtual_tokens
    if adapter.kind == "prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=n)
    if adapter.kind == "prompt":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=n, prompt_tuning_init="RANDOM")
    if adapter.kind == "p_tuning":
        return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=n)
    if adapter.kind == "ia3":
        return peft.IA3Config(task_type=task, modules_to_save=saved, exclude_modules=excluded, **_scaled_by_ia3(model))
    targets: Any = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    if targets == ["all-linear"]:  # people write a list, and PEFT takes only the bare word
        targets = "all-linear"
    alpha: Any = adapter.alpha  # a float works, despite the annotation
    return peft.LoraConfig(
        task_type=task,
        r=adapter.rank,
        lora_alpha=alpha,
        target_modules=targets,
        exclude_modules=excluded,
        lora_dropout=0.0,
        use_dora=adapter.kind == "dora",
        use_rslora=adapter.kind == "rslora",
        modules_to_save=saved,
    )


def _scaled_by_ia3(model: Any) -> dict[str, Any]:
    """Layers whose keys, values and hidden features IA3 scales (Liu et al. 2022, arXiv 2205.05638).

    Only if PEFT has no list for the model type and each block has one of each, under their usual names; else empty, and
    PEFT decides.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    config = model.config.get_text_config()
    linear = [name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    has_known_names = all(linear.count(name) == config.num_hidden_layers for name in _IA3_LAYERS)
    if config.model_type in KNOWN or not has_known_names or any("expert" in name for name, _ in model.named_modules()):
        return {}
    return {"target_modules": list(_IA3_LAYERS), "feedforward_modules": [_IA3_LAYERS[-1]]}


def is_fresh(model: Any) -> bool:
    """Whether the model's adapter was made by :func:`add_adapter`, not loaded from a folder."""
    return bool(getattr(model, _FRESH, False))


def starts_from_drawn(model: Any) -> bool:
    """Whether the model has a fresh adapter whose virtual tokens start as :func:`drawn_tokens`."""
    return is_fresh(model) and virtual_kind(model) in _DRAWN


def starting_table(model: Any) -> Tensor:
    """The weight ``[n, width]`` of a fresh adapter that holds the virtual tokens, without gradient."""
    return model.prompt_encoder[model.active_adapter].embedding.weight.detach()


def _state_draw(model: Any) -> None:
    """Let a prompt tuning adapter's configuration state how it starts; PEFT was told not to draw by itself."""
    from peft import PromptTuningInit

    if virtual_kind(model) == "prompt":
        model.active_peft_config.prompt_tuning_init = PromptTuningInit.SAMPLE_VOCAB


@torch.no_grad()
def drawn_tokens(model: Any, all_heads: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
    """Virtual tokens ``[n, width]`` made of ``n`` tokens drawn from the vocabulary.

    Noise instead would drown out the prompt. For prompt tuning they are the tokens' embeddings, for prefix tuning their
    keys and values.

    Args:
        all_heads: gathers keys or values ``[1, kv heads, n, D]``, if the model computes those of some heads only.

    Raises:
        AfzalError: the model has no such keys and values.
    """
    kind, n, base = virtual_kind(model), virtual_tokens(model), model.get_base_model()
    table = base.get_input_embeddings()
    if kind == "prompt":
        # on the CPU, as PEFT draws them
        return table(torch.randint(0, table.num_embeddings, (n,)).to(table.weight.device)).float()
    ids = torch.randint(0, table.num_embeddings, (1, n), device=table.weight.device)
    try:
        layers = _keys_and_values(base, ids)
    except ValueError as error:
        first = str(error).strip().partition("\n")[0]
        raise AfzalError(
            f"adapter {kind} does not fit {type(base).__name__}", why=first, remedy="adapter=lora"
        ) from error
    columns = [all_heads(part)[0].transpose(0, 1) for layer in layers for part in layer]  # [n, heads, d] each
    return torch.stack(columns, dim=1).flatten(1)


def _keys_and_values(base: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values ``[1, kv heads, n, D]`` of every layer for tokens ``[1, n]``.

    Raises:
        ValueError: some layers have none.
    """
    cache = getattr(base(input_ids=ids, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", ())
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise ValueError("some of its layers have no keys and values that a prefix could replace")
    if any(layer.keys.shape[2] != ids.shape[1] for layer in layers):
        raise ValueError(f"{ids.shape[1]} virtual tokens do not fit in its sliding window")
    return [(layer.keys, layer.values) for layer in layers]


def is_factor(name: str) -> bool:
    """Whether a weight of this name is a factor near 1 (IA3) or a column norm (DoRA), which stays in float32."""
    return "ia3_l" in name or "lora_magnitude_vector" in name


def is_of_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter; PEFT keeps those in float32 on a bf16 model."""
    return any(part in name for part in ("lora_", "ia3_l", "prompt_encoder."))


@torch.no_grad()
def start_norms(model: Any) -> None:
    """Set the norms of fresh DoRA adapters from the current weights, after a change of number format.

    With the norms of the earlier weights, the fresh adapter would not be the identity.
    """
    for magnitude, norms in norms_of(model.modules()):
        magnitude.weight.copy_(norms)


@torch.no_grad()
def norms_of(layers: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Yield the modules that hold the DoRA norms of these layers, each with the norms of the current weights."""
    for layer in layers:
        for name, magnitude in dict(getattr(layer, "lora_magnitude_vector", {})).items():
            weight, change = layer.get_base_layer().weight, layer.lora_B[name].weight @ layer.lora_A[name].weight
            yield magnitude, magnitude.get_weight_norm(weight, change, layer.scaling[name])


def load_adapter(base: Any, folder: str) -> Any:
    """The model with the adapter from a folder; only the adapter trains.

    For p-tuning PEFT saves the output of its network, so training continues on the virtual tokens themselves.
    """
    if peft_type_of(folder) not in _VIRTUAL:
        return load_peft(base, folder, is_trainable=True)
    model = load_peft(base, folder)
    model.prompt_encoder[str(model.active_adapter)].embedding.requires_grad_(True)
    return model


def adapter_base(folder: str | Path) -> str | None:
    """The base model that an adapter folder names (:func:`afzal.folders.kinds.base_of`); None for any other folder.

    Raises:
        AfzalError: the adapter's kind is not supported, or its base model is missing.
    """
    if not is_adapter(folder):
        return None
    kind = peft_type_of(folder)
    if ("PROMPT" in kind and kind not in _VIRTUAL) or kind in _REFUSED:
        raise AfzalError(
            f"{folder} is an adapter of type {kind}, which is not supported",
            why="its virtual tokens have no place in a batch",
            remedy=f"start from its base model, or from an adapter of LoRA, IA3 or {', '.join(sorted(_VIRTUAL))}",
        )
    return base_of(folder)


def peft_type_of(folder: str | Path) -> str:
    """PEFT's name for the kind of an adapter folder, such as LORA or PREFIX_TUNING."""
    return str(adapter_config(folder).get("peft_type"))


def why_reads_base(folder: str | Path) -> str:
    """Why an adapter folder cannot be loaded without the weights of its base model; empty if it can."""
    config = adapter_config(folder)
    if config.get("peft_type") not in _SELF_CONTAINED:
        return f"is of a kind that may be made of the base model's weights ({config.get('peft_type')})"
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return f"starts from the base model's weights (init_lora_weights={config['init_lora_weights']})"
    return "brings along weights of the base model" if config.get("modules_to_save") else ""


def positions_taken(folder: str | Path) -> int:
    """Number of virtual tokens that an adapter folder puts before every row; 0 for any other folder."""
    if not is_adapter(folder) or peft_type_of(folder) not in _VIRTUAL:
        return 0
    return int(adapter_config(folder).get("num_virtual_tokens") or 0)


def is_adapted(model: Any) -> bool:
    """Whether the model carries PEFT adapters that can be switched off."""
    return hasattr(model, "disable_adapter")


def virtual_kind(model: Any) -> str:
    """``prefix``, ``prompt`` or ``p_tuning`` if the model puts virtual tokens before every row, else empty."""
    if not is_adapted(model):
        return ""
    return _VIRTUAL.get(str(getattr(model.active_peft_config.peft_type, "value", "")), "")


def virtual_tokens(model: Any) -> int:
    """Number of virtual tokens before every row of the model; 0 without an adapter that has them."""
    return int(model.active_peft_config.num_virtual_tokens) if virtual_kind(model) else 0


def starting_weights(model: Any) -> dict[str, Tensor]:
    """Copies of the trainable weights, by name: the current state of the adapter."""
    return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


@contextmanager
def acting_as(model: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, ``weights`` replace the model's own weights of the same names; they have no gradient.

    The model's own weights are set aside, not overwritten, so graphs that hold them stay valid.
    """
    with acting_with(model, {n: nn.Parameter(value, requires_grad=False) for n, value in weights.items()}):
        yield


@contextmanager
def acting_with(model: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Like :func:`acting_as`, but with these exact tensors: results computed in the block have gradients to them."""
    places = [(_owner(model, name), name.rpartition(".")[2], value) for name, value in weights.items()]
    parameters = [module._parameters[leaf] for module, leaf, _ in places]
    try:
        for module, leaf, value in places:
            module._parameters[leaf] = value  # pyright: ignore[reportArgumentType] - a tensor of a graph works too
        yield
    finally:
        for (module, leaf, _), parameter in zip(places, parameters, strict=True):
            module._parameters[leaf] = parameter


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
