"""Attention over trees by FlexAttention: one call over the whole row, skipping blocks that no query sees.

The block mask is computed on the host from the layout, in blocks of 128 x 128, without a table of all pairs of
positions; one mask serves all layers of a forward pass. Soft-caps are functions of the score, so families that have
them use this kernel. Dong et al. 2024, arXiv 2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.model.kernels.spans import Spans, spans
from afzal.tokens.attention_blocks import TreeLayout
from afzal.tokens.upload import upload

BLOCK = 128
_NARROWEST = 16  # features per head
_FORMS = 64


def why_unable(dtype: torch.dtype, width: int) -> str:
    """Why the kernel cannot take these numbers; empty if it can."""
    if dtype == torch.float64:
        return "FlexAttention does not compute in float64"
    return f"FlexAttention takes heads of {_NARROWEST} features or more, not {width}" if width < _NARROWEST else ""


def attend(
    q: Tensor, k: Tensor, v: Tensor, layout: TreeLayout, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Query ``[N, H, D]``, key and value ``[N, kv heads, D]`` to ``[N, H, D]``."""
    mask = layout.cached(("flex", window), partial(block_mask, window=window))
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    call = _compiled if q.device.type == "cuda" else _plain()
    return call(q, k, v, _capped(softcap), mask, scale=scale, enable_gqa=grouped)[0].transpose(0, 1)


def _compiled(*args: Any, **options: Any) -> Tensor:
    """Call the compiled kernel. Each number format, head shape, cap and gradient mode is compiled separately. Beyond
    its default limit torch would continue uncompiled, with a table of all pairs of positions."""
    import torch._dynamo as compiler

    with compiler.config.patch(recompile_limit=_FORMS):
        return _compiled_kernel()(*args, **options)


@cache
def _compiled_kernel() -> Callable[..., Any]:
    return torch.compile(_plain(), fullgraph=True)


def _plain() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    """One function per cap, since a new function would be compiled again."""
    if softcap is None:
        return None

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def block_mask(layout: TreeLayout, window: int | None = None) -> Any:
    """The layout in FlexAttention's form: for each block of queries, the blocks of keys it sees in full or in part."""
    from torch.nn.attention.flex_attention import BlockMask

    runs = spans(layout, window)
    n_pairs = pairs_per_block(runs, layout.n_tokens)
    full = n_pairs == BLOCK * BLOCK
    parts = [_listed(table, layout.device) for table in ((n_pairs > 0) & ~full, full)]
    return BlockMask.from_kv_blocks(
        *parts[0],
        *parts[1],
        BLOCK_SIZE=BLOCK,
        mask_mod=_looks_at(*(upload(a, layout.device) for a in (runs.prompt_from, runs.prompt_to, runs.own_from))),
        seq_lengths=(layout.n_tokens, layout.n_tokens),
    )


def pairs_per_block(runs: Spans, n: int) -> np.ndarray:
    """int64 ``[n / BLOCK, n / BLOCK]``, rounded up: visible pairs in every block of queries and keys."""
    blocks = -(-n // BLOCK)
    first = np.arange(blocks)[None, :] * BLOCK
    shared = lambda low, high: np.clip(  # noqa: E731
        np.minimum(high[:, None], first + BLOCK) - np.maximum(low[:, None], first), 0, None
    )
    counts = shared(runs.prompt_from, runs.prompt_to) + shared(runs.own_from, np.arange(n) + 1)
    return np.add.reduceat(counts, np.arange(0, n, BLOCK), axis=0)


def _looks_at(prompt_from: Tensor, prompt_to: Tensor, own_from: Tensor) -> Callable[..., Tensor]:
    def may_see(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prompt = (key >= prompt_from[query]) & (key < prompt_to[query])
        return in_prompt | ((key >= own_from[query]) & (key <= query))

    return may_see


def _listed(table: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many key blocks each row of a table names, int32 ``[1, 1, rows]``, and which, ``[1, 1, rows, columns]``."""
    order = np.argsort(~table, axis=1, kind="stable").astype(np.int32)
    return upload(table.sum(1).astype(np.int32)[None, None], device), upload(order[None, None], device)
