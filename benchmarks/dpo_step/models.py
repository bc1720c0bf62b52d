"""Models of the benchmark: a llama of any size, or a known model's shape, with random weights created on the spot."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from typing import Any

import torch

from afzal.plan import SHAPES, Shape

NAMES = tuple(name for name, shape in SHAPES.items() if shape.family in ("llama", "qwen2"))
_CONTEXT = 16384  # positions; the benchmark's shapes need at most 8,192
_NOISE = 0.2  # in units of the matrix's standard deviation
_LORA_NOISE = 0.05  # standard deviation of an adapter's second matrix; the first keeps the scale of its input


def known(name: str, *, layers: int | None = None) -> Any:
    """The `transformers` configuration of a known shape; ``layers`` overrides its number of layers."""
    return from_shape(SHAPES[name], layers=layers)


def from_shape(shape: Shape, *, layers: int | None = None) -> Any:
    """A configuration with the sizes of this shape (llama and qwen2)."""
    from transformers import LlamaConfig, Qwen2Config

    kind, more = (LlamaConfig, {"head_dim": shape.head_width}) if shape.family == "llama" else (Qwen2Config, {})
    return kind(
        hidden_size=shape.width,
        intermediate_size=shape.ff,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        **more,
        **_COMMON,
    )


def llama(*, width: int, layers: int, heads: int, kv_heads: int, feed_forward: int | None, vocabulary: int) -> Any:
    """Configuration of a llama; ``feed_forward`` defaults to 2.6875 times the width, rounded to a multiple of 16."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width,
        intermediate_size=feed_forward or round(width * 2.6875 / 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        **_COMMON,
    )


_COMMON = {"max_position_embeddings": _CONTEXT, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def build(config: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """The model with the reference's weights: random, created on the device, reproducible on one kind of device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="sdpa", dtype=dtype)
    return made.eval()


@torch.no_grad()
def add_noise(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Turn the reference's weights into the policy's by adding a little noise, so that losses are informative.

    The noise depends only on a weight's name, so every side gets the same. Both matrices of an adapter are set.
    """
    for name, weight in weights:
        if weight.dim() < 2:
            continue
        short = name.rpartition("base_model.model.")[2]
        generator = torch.Generator(weight.device).manual_seed(zlib.crc32(short.encode()))
        noise = torch.randn(weight.shape, generator=generator, device=weight.device)
        if "lora_A" in name:
            weight.copy_(noise * weight.shape[1] ** -0.5)
        elif "lora_B" in name:
            weight.copy_(noise * _LORA_NOISE)
        else:
            weight.add_((noise * _NOISE * weight.float().std()).to(weight.dtype))
