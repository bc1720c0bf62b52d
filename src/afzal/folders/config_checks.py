"""Refuse impossible numbers in a configuration before a library allocates anything of that size.

A list of a hundred million layers fills memory before a library looks at the weights. Sizes that are texts, negative,
or larger than anything in the weights fail in similar ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from afzal.folders.safetensors_header import TensorInfo

MAX_LAYERS = 10_000  # for a folder without weights: no model has a tenth of this
MAX_SIZE = 1 << 31
_UNSET = -1  # means "none" in older configurations

# sizes that every decoder has, so zero, a boolean or a fraction is a mistake
_CORE = {"hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "head_dim"}
_CORE |= {"num_key_value_heads", "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions", "d_model"}
_SIZE = re.compile(
    r"(?:^|_)(?:size|dim|width|rank|heads?|experts|groups|length|positions|embeddings|embd|inner|state)$"
)
_LAYERS = re.compile(r"(?:^|_)(?:layers?|blocks|depth|labels)$")  # counts for which libraries build lists
_ALL_LAYERS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers"})
_ADAPTER_SIZES = ("r", "num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers", "num_layers", "token_dim")
_PATTERNS = (
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_pattern",
    "feedforward_modules",
)
_SCALES = ("factor", "rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_REPEATS = re.compile(r"\)\s*[*+{]")  # a repeated group
_MAX_PATTERN_LENGTH, _MAX_REPEATS = 2000, 6
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def wrong_number(config: Mapping[str, Any], tensors: int | None = None) -> str:
    """Describe the first impossible size in a configuration; empty if there is none.

    Args:
        config: the content of a ``config.json``, nested parts included.
        tensors: number of weight tensors; every layer has at least one.
    """
    for part in _parts(config):
        for key, value in part.items():
            for number in value if isinstance(value, list) else [value]:
                if fault := _size_fault(key, number, tensors):
                    return fault
    return wrong_scale(config)


def wrong_scale(config: Mapping[str, Any]) -> str:
    """Describe the first factor, at any depth of a configuration, that should be positive and finite but is not."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if fault := wrong_scale(value):
                return fault
        elif key in _SCALES and value is not None and not _is_positive(value):
            return f"{key} is {_short(value)}, not a positive number"
    return ""


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def wrong_token(config: Mapping[str, Any], vocabulary: int | None) -> str:
    """Describe the first invalid token id in a configuration; empty if there is none.

    Args:
        vocabulary: V; ids are 0 to V - 1. None if unknown.
    """
    for part in _parts(config):
        size = part.get("vocab_size")
        vocabulary = size if type(size) is int else vocabulary
        for key in _TOKEN_IDS:
            ids = part.get(key)
            for number in ids if isinstance(ids, list) else [ids]:
                if number is None or (number == _UNSET and key == "pad_token_id"):
                    continue
                if type(number) is not int or number < 0:
                    return f"{key} is {_short(number)}, not a token id"
                if vocabulary is not None and number >= vocabulary:
                    return f"{key} is {number}, and the ids of a vocabulary of {vocabulary} end at {vocabulary - 1}"
    return ""


def wrong_adapter(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """Describe the first impossible size in an adapter's configuration; empty if there is none.

    Args:
        tensors: the adapter's weights, whose shapes bound the sizes.
    """
    largest = max([MAX_LAYERS, *(n for t in tensors.values() for n in t.shape)])
    for key in _ADAPTER_SIZES:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            return f"{key} is {_short(value)}, not a count"
        if value > largest:
            return f"{key} is {_short(value)}, more than any of its weights has"
    return ""


def endless_pattern(config: Mapping[str, Any]) -> str:
    """Describe the first pattern in an adapter's configuration whose matching may never end; empty if there is none.

    PEFT matches these patterns against every module's name. A repeated group can make that take longer than any run.
    """
    for key in _PATTERNS:
        value = config.get(key)
        for text in value if isinstance(value, (list, Mapping)) else [value]:
            if isinstance(text, str) and (
                len(text) > _MAX_PATTERN_LENGTH or _REPEATS.search(text) or _has_many_repeats(text)
            ):
                return f"{key} is {_short(text)}, a pattern whose matching may never end"
    return ""


def _has_many_repeats(text: str) -> bool:
    return len(re.findall(r"[*+{]", text)) > _MAX_REPEATS


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """V, as a configuration states it for its text model; None if it does not."""
    text = config.get("text_config")
    places = [text, config] if isinstance(text, Mapping) else [config]
    return next((v for place in places if type(v := place.get("vocab_size")) is int), None)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and its nested configurations, such as ``text_config``."""
    yield config
    yield from (v for k, v in config.items() if k.endswith("_config") and isinstance(v, Mapping))


def _size_fault(key: str, value: Any, tensors: int | None) -> str:
    layers, core = bool(_LAYERS.search(key)), key in _CORE
    if value is None or not (core or layers or _SIZE.search(key)) or isinstance(value, (list, Mapping)):
        return ""
    if isinstance(value, bool):
        return f"{key} is {value}, not a count" if core else ""
    if isinstance(value, str) or (core and not isinstance(value, int)):
        return f"{key} is {_short(value)}, not a count"
    if not (value > 0 if core else value >= 0 or value == _UNSET):
        return f"{key} is {_short(value)}, which is not a size"
    if value > MAX_SIZE:
        return f"{key} is {_short(value)}, more than any model has"
    if layers and value > MAX_LAYERS:
        return f"{key} is {value}, more than any model has"
    if key in _ALL_LAYERS and tensors is not None and value > tensors:
        return f"{key} is {value}; number of weight tensors: {tensors}"
    return ""


def _short(value: Any, limit: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
