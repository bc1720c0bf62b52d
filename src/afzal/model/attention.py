"""Tree attention inside stock `transformers` models.

One function is registered under its own name with the attention interface. Because no mask function has that name,
`transformers` builds no mask, and the tree's layout travels to every layer as the keyword ``tree``. Which models may
use it is decided by an allow-list of families whose layers have no memory other than attention, and by a probe at run
time that compares shared with unshared log-probs.

Shapes: G trees of S slots, H query heads, K key heads, D head width, N row positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from afzal.tokens.batch import TreeLayout

TREE_ATTENTION = "afzal_tree"

# Families measured to give the same log-probs shared and unshared. Others run unshared.
SHAREABLE = frozenset(
    {
        *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss"),
        *("granite", "llama", "ministral", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)
_LAYER_TYPES = {"full_attention", "sliding_attention"}

# On a CPU the fused kernel gains nothing from bf16, so that a plain batched matmul beats it below this many slots.
_EAGER_UP_TO_SLOTS = 768


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: TreeLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over trees packed in one row: query ``[1, H, N, D]``, key and value ``[1, K, N, D]``.

    Returns ``[1, N, H, D]``. Raises when the layout did not arrive, since plain causal attention would be wrong.
    """
    if tree is None:
        raise ValueError("tree attention was called without a tree layout; use stock_attention() around plain calls")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [N, heads, D]
    outputs = []
    for block, mask in zip(tree.blocks, tree.masks(sliding_window), strict=True):
        # [G, heads, S, D]
        qb, kb, vb = (t[block.index].transpose(1, 2) for t in (q, k, v))
        if softcap is not None or s_aux is not None or _prefers_eager(query, mask):
            out = _eager(qb, kb, vb, mask, scale, dropout, softcap, s_aux)
        else:
            out = F.scaled_dot_product_attention(
                qb, kb, vb, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=qb.shape[1] != kb.shape[1]
            )
        outputs.append(out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3]))
    slots = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return slots.index_select(0, tree.inverse)[None], None


def _prefers_eager(query: Tensor, mask: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and mask.shape[-1] <= _EAGER_UP_TO_SLOTS


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax attention with grouped heads folded into the query axis, so that keys and values are never copied."""
    groups, heads, slots, width = q.shape
    kv_heads = k.shape[1]
    folded = (q * scale).reshape(groups, kv_heads, -1, width)
    scores = (folded @ k.transpose(-1, -2)).view(groups, heads, slots, slots)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        extra = sinks.view(1, heads, 1, 1).expand(groups, heads, slots, 1).to(scores.dtype)
        scores = torch.cat([scores, extra], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)[..., :slots]
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights.reshape(groups, kv_heads, -1, slots) @ v).view(groups, heads, slots, width)


AttentionInterface.register(TREE_ATTENTION, tree_attention)


def use_tree_attention(model: Any) -> None:
    """Switch a model (and its config) to tree attention; plain calls then need :func:`stock_attention`."""
    model.set_attn_implementation(TREE_ATTENTION)


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Give the model `transformers`' own attention inside the block, for generation and plain forward passes."""
    current = model.config._attn_implementation
    if current != TREE_ATTENTION:
        yield
        return
    model.set_attn_implementation(stock_implementation(model))
    try:
        yield
    finally:
        model.set_attn_implementation(current)


@contextmanager
def attention_restored(model: Any) -> Iterator[None]:
    """Whatever attention the block gives the model, at its end the model has the one it came with."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def stock_implementation(model: Any) -> str:
    """The stock attention to use beside tree attention: ``sdpa`` where the family supports it, else ``eager``."""
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def may_share(config: Any) -> str:
    """Empty if the family may share prompts between branches, else the reason why not."""
    if config.model_type not in SHAREABLE:
        return f"model type {config.model_type!r} is not among the families known to share prompts exactly"
    odd = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    return f"layer types {sorted(odd)} carry state that branches would share" if odd else ""
