"""Tree attention inside stock `transformers` models.

One function is registered with the attention interface under its own name. Because no mask function has that name,
`transformers` builds no mask, and the tree's layout travels to every layer as the keyword ``tree``. An allow-list
of families whose layers have no memory other than attention, and a run-time probe that compares shared with unshared
log-probs, decide which models may use it.

Shapes: G segments of Q queries and K keys, H query heads, D head width, N row positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from afzal.model import cpu_attention, kernels
from afzal.tokens.attention_blocks import Block, NeededLayout, Plan, Segment, TreeLayout

TREE_ATTENTION = "afzal_tree"

# Families measured to give the same log-probs shared and unshared. Others run unshared.
SHAREABLE = frozenset(
    {
        *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss"),
        *("granite", "llama", "ministral", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)

# The same for families that read images or audio. Those whose image tokens see each other (Gemma 3) are not among them.
SHAREABLE_WITH_MEDIA = frozenset({"idefics3", "llava", "qwen2_audio", "qwen2_vl", "qwen2_5_vl", "smolvlm", "voxtral"})
_LAYER_TYPES = {"full_attention", "sliding_attention"}

# On a CPU the fused kernel gains nothing from bf16, so plain batched products beat it up to this many keys.
_PRODUCTS_UP_TO_KEYS = 1024


class PrefixedLayout(TreeLayout):
    """A layout in which prefix tuning supplies the keys and values of some positions.

    Args:
        places: int64 ``[T n]``, those positions, tree by tree.
        layers: for every layer keys and values ``[1, kv heads, n, D]``, the same for each tree.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        n_tokens: int,
        device: torch.device,
        places: Tensor,
        layers: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(segments, n_tokens, device)
        self.places, self.layers = places, layers

    def put(self, layer: int | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, kv heads, N, D]`` of a layer with the prefix filled in."""
        if layer is None:
            raise ValueError("this attention layer does not know its index, so it cannot have a prefix")
        prefix = self.layers[layer]
        trees = len(self.places) // prefix[0].shape[2]
        key, value = (
            t.index_copy(2, self.places, values.to(t.dtype).repeat(1, 1, trees, 1))
            for t, values in zip((key, value), prefix, strict=True)
        )
        return key, value


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
    """Attention over trees packed in one row: query ``[1, H, N, D]``, key and value ``[1, kv heads, N, D]``.

    Returns ``[1, N, H, D]``. Raises if the layout did not arrive, since plain causal attention would be wrong.
    """
    if tree is None:
        raise ValueError("tree attention was called without a tree layout; use stock_attention() around plain calls")
    if isinstance(tree, PrefixedLayout):
        key, value = tree.put(getattr(module, "layer_idx", None), key, value)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    softmax = _Softmax(scale, dropout, softcap, s_aux)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [N, heads, D]
    job = _job(q, k, softmax, sliding_window)
    kernel = kernels.kernel_for(job)
    if kernel != kernels.BLOCKS:
        whole = tree.whole if isinstance(tree, NeededLayout) else tree
        return kernels.run(kernel, q, k, v, whole, job)[None], None
    plan = tree.plan(query.shape[1] * query.shape[3], sliding_window, query.dtype)
    by_blocks = partial(_by_blocks, plan=plan, softmax=softmax)
    if not _by_products(q, k, plan, softmax):
        return by_blocks(q, k, v)[None], None
    heads = q.shape[1], k.shape[1]
    rows = tree.cached((id(plan), *heads, q.dtype), lambda _: cpu_attention.rows_of(plan, *heads, q.dtype))
    return cpu_attention.attention(q, k, v, rows, scale, by_blocks)[None], None


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, plan: Plan, softmax: _Softmax) -> Tensor:
    """Query ``[N, H, D]``, keys and values ``[N, kv heads, D]`` to ``[N, H, D]``, one call per block."""
    shapes = [block.shape for block in plan.blocks]
    qs = _blocks(q, plan.queries, [(g, n) for g, n, _ in shapes])
    ks, vs = (_blocks(t, plan.keys, [(g, n) for g, _, n in shapes]) for t in (k, v))
    outputs = [
        _attend(qb, kb, vb, block, softmax).transpose(1, 2).flatten(0, 1)
        for qb, kb, vb, block in zip(qs, ks, vs, plan.blocks, strict=True)
    ]
    slots = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return cpu_attention.spread(slots.index_select(0, plan.inverse), plan.needed, len(q))


def _by_products(q: Tensor, k: Tensor, plan: Plan, softmax: _Softmax) -> bool:
    """Whether every block is plain softmax attention for which batched products are fastest."""
    if softmax.softcap is not None or softmax.sinks is not None or softmax.dropout:
        return False
    return type(q) is type(k) is Tensor and all(_prefers_products(q, block.shape[2]) for block in plan.blocks)


def _job(q: Tensor, k: Tensor, softmax: _Softmax, window: int | None) -> kernels.Job:
    heads, width = q.shape[1:]
    unsupported = bool(softmax.dropout) or softmax.sinks is not None
    return kernels.Job(q.device, q.dtype, heads, k.shape[1], width, softmax.scale, window, softmax.softcap, unsupported)


def _blocks(rows: Tensor, index: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Rows ``[N, heads, D]`` gathered once for all blocks, each ``[G, heads, slots, D]``."""
    parts = rows.index_select(0, index).split([g * n for g, n in shapes])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True, slots=True)
class _Softmax:
    """What a layer does to its scores; ``sinks`` ``[H]`` are learnt scores that take a share of each row."""

    scale: float
    dropout: float
    softcap: float | None
    sinks: Tensor | None


def _attend(q: Tensor, k: Tensor, v: Tensor, block: Block, softmax: _Softmax) -> Tensor:
    """Query ``[G, H, Q, D]``, keys and values ``[G, kv heads, K, D]`` to ``[G, H, Q, D]``."""
    if softmax.softcap is not None or softmax.sinks is not None or _prefers_products(q, k.shape[2]):
        return _eager(q, k, v, block, softmax)
    grouped, mask = q.shape[1] != k.shape[1], block.mask
    if grouped and mask is not None and q.device.type == "cuda":  # no CUDA kernel has both: keys would be copied
        return _grouped(q, k, v, mask, softmax)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=softmax.dropout,
        is_causal=mask is None,
        scale=softmax.scale,
        enable_gqa=grouped,
    )


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softmax: _Softmax) -> Tensor:
    """Stack heads that share keys along the query axis, so that keys and values are never copied."""
    kv_heads = k.shape[1]
    sharing = q.shape[1] // kv_heads
    folded = q.unflatten(1, (kv_heads, sharing)).flatten(2, 3)
    repeated_mask = mask.repeat(1, 1, sharing, 1)
    out = F.scaled_dot_product_attention(
        folded, k, v, attn_mask=repeated_mask, dropout_p=softmax.dropout, scale=softmax.scale
    )
    return out.unflatten(2, (sharing, q.shape[2])).flatten(1, 2)


def _prefers_products(q: Tensor, keys: int) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= _PRODUCTS_UP_TO_KEYS


def _eager(q: Tensor, k: Tensor, v: Tensor, block: Block, softmax: _Softmax) -> Tensor:
    """Softmax attention in two batched products. Causal queries go in chunks, which skip later keys."""
    if block.mask is not None:
        return _product(q, k, v, block.bias, softmax)
    outputs = []
    for chunk, n_keys in cpu_attention.causal_chunks(q.shape[2]):
        part, keys, values, bias = q[:, :, chunk], k[:, :, :n_keys], v[:, :, :n_keys], block.bias[..., chunk, :n_keys]
        outputs.append(_product(part, keys, values, bias, softmax))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, softmax: _Softmax) -> Tensor:
    """Fold grouped heads into the query axis, so that keys and values are never copied."""
    groups, heads, slots, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    folded = (q * softmax.scale).reshape(groups, kv_heads, -1, width)
    scores = (folded @ k.transpose(-1, -2)).view(groups, heads, slots, keys)
    if softmax.softcap is not None:
        scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
    scores = scores.add_(bias.to(scores.dtype))
    if softmax.sinks is not None:
        extra = softmax.sinks.view(1, heads, 1, 1).expand(groups, heads, slots, 1).to(scores.dtype)
        scores = torch.cat([scores, extra], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :keys]  # sums in float32 whatever the dtype
    weights = F.dropout(weights, softmax.dropout) if softmax.dropout else weights
    return (weights.reshape(groups, kv_heads, -1, keys) @ v).view(groups, heads, slots, width)


AttentionInterface.register(TREE_ATTENTION, tree_attention)


def keep_uncompiled() -> None:
    """Let compiled blocks call tree attention uncompiled; marked on demand, since marking loads the compiler."""
    AttentionInterface.register(TREE_ATTENTION, torch.compiler.disable(tree_attention))


def use_tree_attention(model: Any) -> None:
    """Switch a model (and its config) to tree attention; plain calls then need :func:`stock_attention`."""
    set_attention(model, TREE_ATTENTION)


def set_attention(model: Any, name: str) -> None:
    """Set the language model's attention by name; image and audio towers keep theirs."""
    text = model.config.get_text_config()
    model.set_attn_implementation(name if text is model.config else {"text_config": name})


def attention_of(model: Any) -> str:
    """The name of the language model's attention."""
    return model.config.get_text_config()._attn_implementation


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Give the model `transformers`' own attention inside the block, for generation and plain forward passes."""
    current = attention_of(model)
    if current != TREE_ATTENTION:
        yield
        return
    set_attention(model, stock_implementation(model))
    try:
        yield
    finally:
        set_attention(model, current)


@contextmanager
def attention_restored(model: Any) -> Iterator[None]:
    """Restore the model's attention at the end of the block."""
    before = attention_of(model)
    try:
        yield
    finally:
        set_attention(model, before)


def stock_implementation(model: Any) -> str:
    """The stock attention to use alongside tree attention: ``sdpa`` if the family supports it, else ``eager``."""
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def may_share(config: Any) -> str:
    """Empty if the family may share prompts between branches, else the reason."""
    text = config.get_text_config()
    known = text.model_type in SHAREABLE if text is config else config.model_type in SHAREABLE_WITH_MEDIA
    if not known:
        return f"model type {config.model_type!r} is not among the families known to share prompts exactly"
    unsupported = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    return f"layer types {sorted(unsupported)} carry state that branches would share" if unsupported else ""
