"""Decoding several samples per prompt inside stock `transformers` models, the prompt's keys and values kept once.

One function is registered with the attention interface under its own name, as for tree attention. In a first pass over
the prompts it keeps their keys and values; after that every call brings one new token per row, all rows packed into a
single `[1, R]` row whose positions continue those of their prompts. Softmax over prompt and suffix is computed in two
parts and merged by their log-sum-exp, so that nothing is copied per sample.

Shapes: G prompts of at most P tokens, R rows (samples being decoded), t suffix tokens, H query heads, K key heads,
D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from afzal.model import rotary, virtual
from afzal.model.attention import attention_restored, set_attention
from afzal.model.logprobs import output_head

DECODE_ATTENTION = "afzal_decode"

_FIRST_ROOM = 64  # suffix tokens that fit before the buffers grow


@dataclass(slots=True)
class _Layer:
    """Keys and values of one attention layer: prompts ``[G, K, P, D]``, suffixes ``[R, K, room, D]``."""

    prompt_k: Tensor
    prompt_v: Tensor
    suffix_k: Tensor
    suffix_v: Tensor


class DecodeCache:
    """Keys and values of G prompts, each kept once, and of the R rows that continue them.

    Args:
        lengths: ``[G]`` int64, tokens per prompt, virtual ones included.
        group: ``[R]`` int64, ascending: the prompt that each row continues.

    Attributes:
        prefix: for every layer the keys and values ``[1, K, n, D]`` of the first tokens of all prompts, where those are
            given and not computed.
    """

    def __init__(self, lengths: Tensor, group: Tensor) -> None:
        self.lengths, self.group = lengths, group
        self.prefix: Sequence[tuple[Tensor, Tensor]] = ()
        self.layers: dict[nn.Module, _Layer] = {}
        self.filling: slice | None = None  # the prompts that a pass over prompts computes
        self.written = 0
        self._arrange()

    def positions(self) -> Tensor:
        """``[1, R]`` logical position of each row's next token."""
        return (self.lengths + self.written)[self.group][None]

    def keep(self, rows: Tensor) -> None:
        """Only these rows continue, in this order; prompts without a row are forgotten. ``rows`` ascends."""
        group = self.group[rows]
        prompts, self.group = torch.unique(group, return_inverse=True)
        narrower = len(prompts) < len(self.lengths)
        self.lengths = self.lengths[prompts]
        for layer in self.layers.values():
            layer.suffix_k, layer.suffix_v = layer.suffix_k[rows], layer.suffix_v[rows]
            if narrower:
                layer.prompt_k, layer.prompt_v = layer.prompt_k[prompts], layer.prompt_v[prompts]
        self._arrange()

    def hidden_prompt(self, window: int | None) -> Tensor | None:
        """``[G, 1, 1, S]`` bool: which of the last S prompt slots the next token does not see; None when it sees all.

        The slots before those are seen.
        """
        if self._hidden_at != self.written:
            self._hidden, self._hidden_at = {}, self.written
        if window not in self._hidden:
            self._hidden[window] = self._find_hidden(window)
        return self._hidden[window]

    def to_grid(self, rows: Tensor) -> Tensor:
        """Rows ``[R, ...]`` as ``[G, m, ...]``: the rows of a prompt side by side, padded with row 0 where fewer."""
        if self._grid is None:
            return rows.unflatten(0, (len(self.lengths), -1))
        return rows[self._grid]

    def to_rows(self, grid: Tensor) -> Tensor:
        """The inverse of :meth:`to_grid`."""
        flat = grid.flatten(0, 1)
        return flat if self._slot is None else flat[self._slot]

    def _arrange(self) -> None:
        counts = torch.bincount(self.group, minlength=len(self.lengths))
        most = int(counts.max())
        self._shortest = int(self.lengths.min())
        self._hidden: dict[int | None, Tensor | None] = {}
        self._hidden_at = -1
        self._grid = self._slot = None
        if not bool((counts == most).all()):
            first = counts.cumsum(0) - counts
            place = torch.arange(len(self.group), device=self.group.device) - first[self.group]
            self._slot = self.group * most + place
            self._grid = torch.zeros(len(counts) * most, dtype=torch.int64, device=self.group.device)
            self._grid[self._slot] = torch.arange(len(self.group), device=self.group.device)
            self._grid = self._grid.view(len(counts), most)

    def _find_hidden(self, window: int | None) -> Tensor | None:
        width = next(iter(self.layers.values())).prompt_k.shape[2]
        first = self._shortest if window is None else 0
        if first == width:
            return None
        slots, ends = torch.arange(first, width, device=self.lengths.device), self.lengths[:, None]
        hidden = slots >= ends
        if window is not None:
            hidden |= ends + self.written - slots >= window
        return hidden[:, None, None]


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    decode: DecodeCache | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for both passes of shared decoding; inference only, so that ``dropout`` plays no part.

    Over prompts, query ``[g, H, P, D]`` and key, value ``[g, K, P, D]`` give ``[g, P, H, D]``; over new tokens, query
    ``[1, H, R, D]`` and key, value ``[1, K, R, D]`` give ``[1, R, H, D]``.
    """
    if decode is None:
        raise ValueError("decode attention was called without its cache; use shared decoding only inside its block")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if decode.filling is not None:
        if decode.prefix:
            key, value = _put(decode.prefix[_layer_of(module)], key, value)
        _keep_prompts(decode, module, key, value)
        return _causal(query, key, value, scale, sliding_window, softcap, s_aux).transpose(1, 2), None
    _append(decode, module, key[0], value[0])
    out = _merged(decode, decode.layers[module], query[0].transpose(0, 1) * scale, sliding_window, softcap, s_aux)
    return out.to(query.dtype)[None], None


def _layer_of(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError("this attention does not know which layer it is, so that it cannot have a prefix")
    return layer


def _put(prefix: tuple[Tensor, Tensor], *computed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[g, K, P, D]`` with those of the prefix in the first places."""
    key, value = (
        torch.cat([own.to(t.dtype).expand(len(t), -1, -1, -1), t[:, :, own.shape[2] :]], dim=2)
        for own, t in zip(prefix, computed, strict=True)
    )
    return key, value


def _keep_prompts(cache: DecodeCache, module: nn.Module, key: Tensor, value: Tensor) -> None:
    if module not in cache.layers:
        prompts = key.new_zeros((2, len(cache.lengths), key.shape[1], int(cache.lengths.max()), key.shape[3]))
        suffixes = key.new_empty((2, len(cache.group), key.shape[1], _FIRST_ROOM, key.shape[3]))
        cache.layers[module] = _Layer(*prompts, *suffixes)
    layer = cache.layers[module]
    layer.prompt_k[cache.filling, :, : key.shape[2]] = key
    layer.prompt_v[cache.filling, :, : key.shape[2]] = value


def _append(cache: DecodeCache, module: nn.Module, key: Tensor, value: Tensor) -> None:
    layer = cache.layers[module]
    if cache.written == layer.suffix_k.shape[2]:
        layer.suffix_k, layer.suffix_v = (_doubled(t) for t in (layer.suffix_k, layer.suffix_v))
    layer.suffix_k[:, :, cache.written] = key.transpose(0, 1)
    layer.suffix_v[:, :, cache.written] = value.transpose(0, 1)


def _doubled(suffix: Tensor) -> Tensor:
    rows, heads, room, width = suffix.shape
    larger = suffix.new_empty((rows, heads, 2 * room, width))
    larger[:, :, :room] = suffix
    return larger


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """``[g, H, P, D]``: causal attention over prompts padded on the right, whose padding no real token sees."""
    width = q.shape[2]
    if softcap is None and sinks is None and (window is None or window >= width):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    at = torch.arange(width, device=q.device)
    distance = at[:, None] - at
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    grouped = (q * scale).unflatten(1, (k.shape[1], -1))  # [g, K, H/K, P, D]
    out, total = _part(grouped, k[:, :, None], v[:, :, None], softcap, hidden)
    return _with_sinks(out, total, sinks, k.shape[1]).flatten(1, 2).to(q.dtype)


def _merged(
    cache: DecodeCache, layer: _Layer, q: Tensor, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """``[R, H, D]`` for scaled queries ``[R, H, D]``: softmax over the row's prompt and its suffix."""
    kv_heads, now = layer.suffix_k.shape[1], cache.written + 1
    own = q.unflatten(1, (kv_heads, -1))  # [R, K, H/K, D]
    grid = cache.to_grid(own).transpose(1, 2)  # [G, K, m, H/K, D]
    of_prompt, total_p = _part(grid.flatten(2, 3), layer.prompt_k, layer.prompt_v, softcap, cache.hidden_prompt(window))
    parts = torch.cat([of_prompt, total_p], dim=-1).unflatten(2, grid.shape[2:4]).transpose(1, 2)
    of_prompt, total_p = cache.to_rows(parts).split([q.shape[-1], 1], dim=-1)
    first = 0 if window is None else max(0, now - window)
    seen_k, seen_v = layer.suffix_k[:, :, first:now], layer.suffix_v[:, :, first:now]
    of_suffix, total_s = _part(own, seen_k, seen_v, softcap, None)
    out = torch.lerp(of_suffix, of_prompt, torch.sigmoid(total_p - total_s))
    if sinks is not None:
        total = torch.logaddexp(total_p, total_s)
        out = _with_sinks(out[:, :, :, None], total[:, :, :, None], sinks, kv_heads)
    return out.flatten(1, -2)


def _part(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention over some of the keys, and the log-sum-exp ``[..., 1]`` of their scores, both float32."""
    if softcap is None and _is_fused(q):
        return _fused(q, k, v, hidden)
    scores = (q @ k.transpose(-1, -2)).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        scores[..., scores.shape[-1] - hidden.shape[-1] :].masked_fill_(hidden, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    # one fused pass and two maxima are cheaper than a log-sum-exp beside the softmax
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return (weights.to(v.dtype) @ v).float(), total


def _is_fused(q: Tensor) -> bool:
    # oneDNN copies keys that lie in a larger buffer, and makes a kernel for every number of them: that is two thirds
    # of the time of batched products in bf16. In float32 they are as fast as the fused kernel.
    fused = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    return fused and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.dim() == 4


def _fused(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same by the CPU's fused kernel, which reads keys where they lie. Its scores and sums are float32."""
    mask = None
    if hidden is not None:
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, torch.finfo(q.dtype).min)
        mask = F.pad(mask, (k.shape[2] - hidden.shape[-1], 0))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, total = kernel(q, k, v, attn_mask=mask, scale=1.0)
    return out.float(), total[..., None]


def _with_sinks(out: Tensor, total: Tensor, sinks: Tensor | None, kv_heads: int) -> Tensor:
    """``[B, K, H/K, n, D]`` after a learnt score per head, if there are such, has taken its share of the softmax."""
    return out if sinks is None else out * torch.sigmoid(total - sinks.float().view(1, kv_heads, -1, 1, 1))


AttentionInterface.register(DECODE_ATTENTION, decode_attention)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode: in training mode, layers that are recomputed would do without a cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def shared_decoding(model: Any) -> Iterator[None]:
    """The model with decode attention, in evaluation mode; at the end it has the attention and mode it came with."""
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
        tokens_per_forward: prompts are read in passes of at most so many positions (a longer one goes alone).
    """
    device, before = next(model.parameters()).device, virtual.count(model)
    lengths = np.array([before + len(p) for p in prompts])
    group = torch.tensor(np.asarray(rows), device=device)
    cache = DecodeCache(torch.tensor(lengths, device=device), group)
    per_pass = max(1, tokens_per_forward // int(lengths.max()))
    logits = []
    for first in range(0, len(prompts), per_pass):
        some = prompts[first : first + per_pass]
        cache.filling = slice(first, first + len(some))
        logits.append(_first_logits(model, some, cache, device))
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
    given: dict[str, Any] = {"position_ids": positions, "decode": cache, "use_cache": False}

    def inputs() -> dict[str, Any]:
        cache.prefix = virtual.prefix(model)
        if not before or cache.prefix:  # a prefix's keys and values take the places of whatever is read there
            return {"input_ids": F.pad(ids, (before, 0)), **given}
        return {"inputs_embeds": virtual.embedded(model, ids), **given}

    def only_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1)[last][None],)

    hook = output_head(model).register_forward_pre_hook(only_last, prepend=True)
    try:
        return virtual.call(model, inputs).logits[0]
    finally:
        hook.remove()


def next_logits(model: Any, tokens: Tensor, cache: DecodeCache) -> Tensor:
    """Logits ``[R, V]`` after one more token ``[R]`` in every row."""
    given = {"input_ids": tokens[None], "position_ids": cache.positions(), "decode": cache, "use_cache": False}
    out = virtual.call(model, lambda: given)
    cache.written += 1
    return out.logits[0]
