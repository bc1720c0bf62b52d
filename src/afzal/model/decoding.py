"""Decode several samples per prompt in stock `transformers` models, storing each prompt's keys and values once.

One function is registered with the attention interface under its own name, as for tree attention. A first pass over
the prompts stores their keys and values. After that every call adds one new token per row, with all rows packed into a
single `[1, R]` row whose positions continue those of their prompts. Scores against a prompt are computed for all of its
rows together and share one softmax with the scores against each row's own suffix: no key is copied per sample.

Rows that start together form a cohort with a cache of its own; all cohorts share a forward pass, and only attention
looks at one after the other. So rows may join while others are far into their answers, and no row reads the empty
slots of a longer one.

Shapes: G prompts of at most P tokens, R rows (samples being decoded), t suffix tokens, H query heads, K key heads,
D head width, V vocabulary, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from afzal.model import rotary, virtual
from afzal.model.attention import attention_restored, set_attention
from afzal.model.decode_cache import DecodeCache, Layer
from afzal.model.logprobs import output_head

DECODE_ATTENTION = "afzal_decode"


class _Cohorts:
    """The caches that one forward pass continues, and the positions of their rows."""

    def __init__(self, caches: Sequence[DecodeCache]) -> None:
        self.caches, self.sizes = caches, [len(cache.group) for cache in caches]
        self.positions = torch.cat([cache.positions() for cache in caches], dim=1)


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    decode: DecodeCache | _Cohorts | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for both passes of shared decoding; inference only, so ``dropout`` is ignored.

    Over the prompts that a cache is filled with, query ``[g, H, P, D]`` and key, value ``[g, K, P, D]`` give
    ``[g, P, H, D]``; over the new tokens of one cache or several cohorts, query ``[1, H, R, D]`` and key, value
    ``[1, K, R, D]`` give ``[1, R, H, D]``.
    """
    if decode is None:
        raise ValueError("decode attention was called without its cache; use shared decoding only inside its block")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    sinks = None if s_aux is None else s_aux.float().view(key.shape[1], -1, 1)
    if isinstance(decode, DecodeCache) and decode.filling is not None:
        if decode.prefix:
            key, value = _put(decode.prefix[_layer_of(module)], key, value)
        decode.keep_prompts(module, key, value)
        return _causal(query, key, value, scale, sliding_window, softcap, sinks).transpose(1, 2), None
    caches, sizes = ([decode], [query.shape[2]]) if isinstance(decode, DecodeCache) else (decode.caches, decode.sizes)
    out = []
    parts = zip(caches, *(t[0].split(sizes, dim=1) for t in (query * scale, key, value)), strict=True)
    for cache, q, k, v in parts:
        layer = cache.append(module, k, v)
        out.append(_continued(cache, layer, q.transpose(0, 1), sliding_window, softcap, sinks))
    return (out[0] if len(out) == 1 else torch.cat(out))[None], None


def _layer_of(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError("this attention layer does not know its index, so it cannot have a prefix")
    return layer


def _put(prefix: tuple[Tensor, Tensor], *computed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[g, K, P, D]`` with those of the prefix in the first places."""
    key, value = (
        torch.cat([prefix_values.to(t.dtype).expand(len(t), -1, -1, -1), t[:, :, prefix_values.shape[2] :]], dim=2)
        for prefix_values, t in zip(prefix, computed, strict=True)
    )
    return key, value


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """``[g, H, P, D]``: causal attention over prompts padded on the right, whose padding no real token sees."""
    width = q.shape[2]
    if softcap is None and sinks is None and (window is None or window >= width):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    position = torch.arange(width, device=q.device)
    distance = position[:, None] - position
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    grouped = (q * scale).unflatten(1, (k.shape[1], -1))  # [g, K, H/K, P, D]
    scores = (grouped @ k[:, :, None].transpose(-1, -2)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = _softmax(scores.masked_fill_(hidden, -torch.inf), None if sinks is None else sinks[..., None]).to(q.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)


def _continued(
    cache: DecodeCache, layer: Layer, q: Tensor, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """``[R, H, D]`` for scaled queries ``[R, H, D]``: one softmax over the row's prompt and its suffix."""
    heads, width = layer.prompt_v.shape[1:3]
    queries = q.unflatten(1, (heads, -1))  # [R, K, H/K, D]
    grid = cache.to_grid(queries).transpose(1, 2)  # [G, K, m, H/K, D]
    shape = grid.shape[2:4]
    scores = torch.empty((*queries.shape[:3], width + layer.suffix_k.shape[1]), dtype=torch.float32, device=q.device)
    of_prompt = grid.flatten(2, 3) @ layer.prompt_k
    scores[..., :width] = cache.to_rows(of_prompt.unflatten(2, shape).transpose(1, 2))
    scores[..., width:] = (layer.suffix_k @ cache.block_diagonal(queries).mT).mT.unflatten(1, queries.shape[1:3])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden, filled = cache.hidden_prompt(window), cache.written + 1
    if hidden is not None:
        scores[..., width - hidden.shape[-1] : width].masked_fill_(hidden, -torch.inf)
    scores[..., width + filled :] = -torch.inf  # slots not filled yet
    older = cache.hidden_suffix()
    if older is not None:
        scores[..., width : width + older.shape[-1]].masked_fill_(older, -torch.inf)
    if window is not None:
        scores[..., width : width + max(0, filled - window)] = -torch.inf
    weights = _softmax(scores, sinks).to(q.dtype)
    of_prompt = cache.to_grid(weights[..., :width]).transpose(1, 2).flatten(2, 3) @ layer.prompt_v
    of_suffix = weights[..., width:].flatten(1, 2) @ layer.suffix_v
    out = cache.to_rows(of_prompt.unflatten(2, shape).transpose(1, 2)) + _diagonal(of_suffix, queries.shape)
    return out.flatten(1, 2)


def _diagonal(out: Tensor, shape: torch.Size) -> Tensor:
    """``[R, K, H/K, D]`` from ``[R, H, K * D]``: the columns of each query's own key head."""
    rows, heads, per_key_head, width = shape
    return out.view(rows, heads, per_key_head, heads, width).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """``[..., n]``: softmax of float32 scores, less the share of a learnt score ``[..., 1]`` if there is one."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1), dim=-1)[..., :-1]


AttentionInterface.register(DECODE_ATTENTION, decode_attention)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode: in training mode, recomputed layers would ignore the cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def shared_decoding(model: Any) -> Iterator[None]:
    """Give the model decode attention and evaluation mode; restore both at the end."""
    with attention_restored(model), evaluating(model):
        set_attention(model, DECODE_ATTENTION)
        rotary.start_afresh(model)
        yield


def read_prompts(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], *, tokens_per_forward: int = 8192
) -> tuple[Tensor, DecodeCache]:
    """One pass over G prompts: logits ``[R, V]`` of each row's first token, and the cache to continue with.

    Args:
        rows: for each of the R rows the prompt it continues, ascending, every prompt at least once.
        tokens_per_forward: prompts are read in passes of at most this many positions (a longer one goes alone).
    """
    device, before = next(model.parameters()).device, virtual.count(model)
    lengths = np.array([before + len(p) for p in prompts])
    group = torch.tensor(np.asarray(rows), device=device)
    cache = DecodeCache(torch.tensor(lengths, device=device), group)
    per_pass = max(1, tokens_per_forward // int(lengths.max()))
    logits = []
    for first in range(0, len(prompts), per_pass):
        part = prompts[first : first + per_pass]
        cache.filling = slice(first, first + len(part))
        logits.append(_first_logits(model, part, cache, device))
    cache.filling = None
    return torch.cat(logits)[cache.group], cache


def _first_logits(model: Any, prompts: Sequence[Sequence[int]], cache: DecodeCache, device: torch.device) -> Tensor:
    before, longest = virtual.count(model), max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
    ids, width = ids.to(device), before + longest
    last = torch.tensor([i * width + before + len(p) - 1 for i, p in enumerate(prompts)], device=device)
    positions = torch.arange(width, device=device).expand(len(prompts), width)
    common: dict[str, Any] = {"position_ids": positions, "decode": cache, "use_cache": False}

    def inputs() -> dict[str, Any]:
        cache.prefix = virtual.prefix(model)
        if not before or cache.prefix:  # a prefix's keys and values replace whatever is read there
            return {"input_ids": F.pad(ids, (before, 0)), **common}
        return {"inputs_embeds": virtual.embedded(model, ids), **common}

    def only_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[last][None],)

    hook = output_head(model).register_forward_pre_hook(only_last, prepend=True)
    try:
        return virtual.call(model, inputs).logits[0]
    finally:
        hook.remove()


def next_logits(model: Any, tokens: Tensor, *caches: DecodeCache) -> Tensor:
    """Logits ``[R, V]`` after one more token ``[R]`` in every row of the caches, in their order."""
    cohorts = _Cohorts(caches)
    inputs = {"input_ids": tokens[None], "position_ids": cohorts.positions, "decode": cohorts, "use_cache": False}
    out = virtual.call(model, lambda: inputs)
    for cache in caches:
        cache.written += 1
    return out.logits[0]
