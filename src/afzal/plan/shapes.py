"""Shapes of language models: weight counts from a configuration, without building the model.

Counts are exact: they equal those of the `transformers` model that the configuration describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from afzal.errors import AfzalError


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions that determine a decoder's number of weights and its arithmetic.

    Attributes:
        width: features of the residual stream.
        heads, kv_heads, head_width: query heads, key-value heads, features of each.
        ff: hidden features of the feed-forward layer, or of one expert.
        experts, experts_used: experts per block and per token; 0 in a dense model.
        tied: whether input and output embeddings are one matrix.
        norms: full-width norms per block: 2, or 4 if outputs are normed too.
        head_norm: norms on queries and keys: none, over one head, or over all heads together.
        media: whether it also reads images or sounds.
        towers, projection: weights of the encoders of images and sounds, which stay frozen, and of the projection from
            their features to the model's, which train; 0 if only a configuration is known.
    """

    name: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ff: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    experts_used: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    ff_bias: bool = False
    norms: int = 2
    head_norm: Literal["none", "head", "all"] = "none"
    media: bool = False
    towers: int = 0
    projection: int = 0


# Facts that a family's configuration does not state.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral": {},
    "mixtral": {"experts": True},
    "smollm3": {"tied": True},
    "granite": {},
    "qwen2": {"qkv_bias": True},
    "qwen2_vl_text": {"qkv_bias": True},
    "qwen2_5_vl_text": {"qkv_bias": True},
    "qwen3": {"head_norm": "head", "head_width": 128},
    "qwen3_moe": {"head_norm": "head", "experts": True, "ff": "moe_intermediate_size"},
    "olmo2": {"head_norm": "all"},
    "gemma": {"tied": True, "head_width": 256},
    "gemma2": {"tied": True, "head_width": 256, "norms": 4},
    "gemma3_text": {"tied": True, "head_width": 256, "norms": 4, "head_norm": "head"},
}
_OTHER_INPUTS = ("vision_config", "audio_config")
_EXPERTS = ("num_local_experts", "num_experts")  # transformers writes the first for both


def shape_of(config: Mapping[str, Any], name: str = "") -> Shape:
    """The shape that a `transformers` configuration (``config.json`` as a mapping) describes.

    Raises:
        AfzalError: the family is unknown, a number is missing, or the blocks differ from each other.
    """
    media = any(isinstance(config.get(key), Mapping) for key in _OTHER_INPUTS)
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else None
    config = text if text is not None else config
    family = str(config.get("model_type"))
    if family not in _FAMILIES:
        raise AfzalError(
            f"model type {family!r} cannot be planned",
            where=name,
            remedy=f"plan a model of one of: {', '.join(_FAMILIES)}",
        )
    facts = _FAMILIES[family]
    width, heads = _number(config, "hidden_size", name), _number(config, "num_attention_heads", name)
    experts = next((int(config[key]) for key in _EXPERTS if config.get(key)), 0) if facts.get("experts") else 0
    if experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise AfzalError(
            "blocks with and without experts cannot be planned together",
            where=name,
            why="mlp_only_layers is set, or decoder_sparse_step is not 1",
            remedy="plan a model whose blocks are all of the same kind",
        )
    biased = bool(config.get("attention_bias", False))
    return Shape(
        name=name or family,
        family=family,
        layers=_number(config, "num_hidden_layers", name),
        width=width,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or facts.get("head_width") or width // heads),
        ff=_number(config, facts.get("ff", "intermediate_size"), name),
        vocabulary=_number(config, "vocab_size", name),
        tied=bool(config.get("tie_word_embeddings", facts.get("tied", False))),
        experts=experts,
        experts_used=int(config.get("num_experts_per_tok") or 0) if experts else 0,
        qkv_bias=facts.get("qkv_bias", False) or biased,
        out_bias=biased,
        ff_bias=bool(config.get("mlp_bias", False)),
        norms=facts.get("norms", 2),
        head_norm=facts.get("head_norm", "none"),
        media=media,
    )


def _number(config: Mapping[str, Any], key: str, name: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AfzalError(f"{key} is {value!r}, not a count", where=name or "config.json", remedy=f"give it a {key}")
    return value


def block_matrices(shape: Shape) -> int:
    """Weights of one block in matrix products with tokens, including all experts and their router."""
    feed_forward = 3 * shape.width * shape.ff * max(1, shape.experts) + shape.width * shape.experts
    return _attention_matrices(shape) + feed_forward


def visited_matrices(shape: Shape) -> int:
    """The share of :func:`block_matrices` used by one token: only the experts it is routed to."""
    feed_forward = 3 * shape.width * shape.ff * max(1, shape.experts_used) + shape.width * shape.experts
    return _attention_matrices(shape) + feed_forward


def block_parameters(shape: Shape) -> int:
    """All weights of one block: matrices, biases, norms."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    biases = (queries + 2 * keys) * shape.qkv_bias + shape.width * shape.out_bias
    biases += (2 * shape.ff + shape.width) * shape.ff_bias
    head_norms = {"none": 0, "head": 2 * shape.head_width, "all": queries + keys}[shape.head_norm]
    return block_matrices(shape) + biases + shape.norms * shape.width + head_norms


def embedding_parameters(shape: Shape) -> int:
    """Weights of one matrix from tokens to features, or from features to tokens."""
    return shape.vocabulary * shape.width


def parameters(shape: Shape) -> int:
    """All weights of the language model; tied ones are counted once."""
    embeddings = embedding_parameters(shape) * (1 if shape.tied else 2)
    return shape.layers * block_parameters(shape) + shape.width + embeddings


def trunk_parameters(shape: Shape) -> int:
    """All weights below the output head: the trunk of a reward or value model."""
    return shape.layers * block_parameters(shape) + shape.width + embedding_parameters(shape)


def reward_bytes(shape: Shape) -> float:
    """Bytes of a reward model with one head, in float32."""
    return 4.0 * (trunk_parameters(shape) + shape.width)


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Weights of LoRA adapters of this rank on every linear layer of the blocks.

    With experts, the router and each expert have adapters too; an expert's gate and up are one matrix, to which PEFT
    gives twice the rank.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    ends = 2 * (shape.width + queries) + 2 * (shape.width + keys)
    if shape.experts:
        ends += shape.width + shape.experts
        ends += shape.experts * (2 * (shape.width + 2 * shape.ff) + shape.ff + shape.width)
    else:
        ends += 3 * (shape.width + shape.ff)
    return shape.layers * rank * ends


def _attention_matrices(shape: Shape) -> int:
    return shape.width * shape.head_width * (2 * shape.heads + 2 * shape.kv_heads)


def _llama(name: str, layers: int, width: int, heads: int, ff: int, **facts: Any) -> Shape:
    base = {"kv_heads": 8, "head_width": 128, "vocabulary": 128256, **facts}
    return Shape(name, "llama", layers, width, heads, ff=ff, **base)


def _qwen(name: str, layers: int, width: int, heads: int, kv_heads: int, ff: int, **facts: Any) -> Shape:
    base = {"head_width": 128, "vocabulary": 152064, "qkv_bias": True, **facts}
    return Shape(name, "qwen2", layers, width, heads, kv_heads, ff=ff, **base)


def _gemma2(name: str, layers: int, width: int, heads: int, ff: int, head_width: int) -> Shape:
    return Shape(name, "gemma2", layers, width, heads, heads // 2, head_width, ff, 256000, tied=True, norms=4)


_SMALL_QWEN = {"vocabulary": 151936, "tied": True}
_SHAPES = (
    _llama("llama-3.2-1b", 16, 2048, 32, 8192, head_width=64, tied=True),
    _llama("llama-3.2-3b", 28, 3072, 24, 8192, tied=True),
    _llama("llama-3.1-8b", 32, 4096, 32, 14336),
    _llama("llama-3.1-70b", 80, 8192, 64, 28672),
    _llama("llama-3.1-405b", 126, 16384, 128, 53248),
    _qwen("qwen2.5-0.5b", 24, 896, 14, 2, 4864, head_width=64, **_SMALL_QWEN),
    _qwen("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, **_SMALL_QWEN),
    _qwen("qwen2.5-3b", 36, 2048, 16, 2, 11008, **_SMALL_QWEN),
    _qwen("qwen2.5-7b", 28, 3584, 28, 4, 18944),
    _qwen("qwen2.5-14b", 48, 5120, 40, 8, 13824),
    _qwen("qwen2.5-32b", 64, 5120, 40, 8, 27648),
    _qwen("qwen2.5-72b", 80, 8192, 64, 8, 29568),
    Shape("mistral-7b", "mistral", 32, 4096, 32, 8, 128, 14336, 32768),
    Shape("mixtral-8x7b", "mixtral", 32, 4096, 32, 8, 128, 14336, 32000, experts=8, experts_used=2),
    _gemma2("gemma-2-2b", 26, 2304, 8, 9216, 256),
    _gemma2("gemma-2-9b", 42, 3584, 16, 14336, 256),
    _gemma2("gemma-2-27b", 46, 4608, 32, 36864, 128),
    Shape("gemma-3-1b", "gemma3_text", 26, 1152, 4, 1, 256, 6912, 262144, tied=True, norms=4, head_norm="head"),
    Shape("olmo-2-7b", "olmo2", 32, 4096, 32, 32, 128, 11008, 100352, head_norm="all"),
)
SHAPES: dict[str, Shape] = {shape.name: shape for shape in _SHAPES}


def named(name: str) -> Shape | None:
    """A built-in shape by name, ignoring case, owner and ``-instruct``; None if there is none."""
    short_name = name.lower().rpartition("/")[2].removesuffix("-instruct").removesuffix("-it")
    short_name = short_name.removeprefix("meta-")
    return SHAPES.get(short_name)


def nearest(name: str) -> str:
    """`` (did you mean X?)`` for a misspelt built-in name, else an empty text."""
    matches = get_close_matches(name.lower(), SHAPES, n=1, cutoff=0.7)
    return f" (did you mean {matches[0]}?)" if matches else ""
