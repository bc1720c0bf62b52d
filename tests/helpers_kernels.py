"""Stand-ins for GPU-only kernels: their definition in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def flash_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
    aligned: str = "bottom-right",
) -> Tensor:
    """Flash attention for sequences of unequal lengths, as documented.

    The last query is aligned with the last key (``aligned``); window (l, r) lets a query see l keys before and r after
    it; -1 means all.
    """
    assert q.dim() == k.dim() == 3
    assert (q.shape[1] == k.shape[1]) or q.shape[1] % k.shape[1] == 0
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert int(query_ends.diff().max()) == longest_query
    assert int(key_ends.diff().max()) == longest_key
    outputs = []
    for a, b, c, d in zip(query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:], strict=True):
        outputs.append(_one(q[a:b], k[c:d], v[c:d], scale, window_size, aligned))
    return torch.cat(outputs)


def _one(q: Tensor, k: Tensor, v: Tensor, scale: float, window: tuple[int, int], aligned: str) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    offset = len(k) - len(q) if aligned == "bottom-right" else 0
    ahead = torch.arange(len(k))[None, :] - (torch.arange(len(q))[:, None] + offset)
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if window[0] >= 0:
        seen &= ahead >= -window[0]
    if window[1] >= 0:
        seen &= ahead <= window[1]
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v.float()).to(q.dtype)


def top_left(*args: Any, **options: Any) -> Tensor:
    """The same with the other alignment, which is wrong for branches."""
    return flash_by_definition(*args, **options, aligned="top-left")
