"""Attention over trees by PyTorch's flash attention for sequences of unequal lengths.

A tree is cut into sequences of queries: the prompt together with the branch behind it, and every further branch. The
first has its own positions as keys. A further branch has the prompt's keys and its own, copied together, so that its
queries are at the end of their keys, as bottom-right causal order requires. Nothing is padded, no pair of positions is
read needlessly, and grouped heads share their keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.tokens.attention_blocks import Segment, TreeLayout
from afzal.tokens.upload import upload

_WIDEST = 256  # features per head


@dataclass(frozen=True, slots=True)
class Sequences:
    """S sequences of queries that tile the row in order, and the keys of each.

    Attributes:
        query_ends, key_ends: int32 ``[S + 1]``, running sums of lengths, from 0.
        longest_query, longest_key: in positions.
        keys: int64 row positions of all keys, sequence by sequence; None if they are the row itself.
    """

    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    keys: Tensor | None


def why_unable(dtype: torch.dtype, width: int) -> str:
    """Why the kernel cannot take these numbers; empty if it can."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention computes in 16 bits, not in {str(dtype).removeprefix('torch.')}"
    if width % 8 or width > _WIDEST:
        return f"flash attention takes heads of up to {_WIDEST} features in steps of 8, not {width}"
    return ""


def attend(q: Tensor, k: Tensor, v: Tensor, layout: TreeLayout, *, scale: float, window: int | None) -> Tensor:
    """Query ``[N, H, D]``, key and value ``[N, kv heads, D]`` to ``[N, H, D]``."""
    cut = layout.cached("ragged", sequences)
    if cut.keys is not None:
        k, v = k.index_select(0, cut.keys), v.index_select(0, cut.keys)
    # a window of W positions is the query itself and the W - 1 before it
    window_size = (-1 if window is None else window - 1, 0)
    lengths = (cut.query_ends, cut.key_ends, cut.longest_query, cut.longest_key)
    return flash(q, k, v, *lengths, scale=scale, window_size=window_size, **_grouped(q.shape[1] != k.shape[1]))


def flash(*args: Any, **options: Any) -> Any:
    """:func:`torch.nn.attention.varlen.varlen_attn`; one name, so that tests can replace it by a definition."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*args, **options)


def _grouped(needed: bool) -> dict[str, bool]:
    """The option for fewer key heads than query heads: torch 2.11 needs none, later versions do."""
    return {"enable_gqa": True} if needed and "enable_gqa" in _options() else {}


@cache
def _options() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def sequences(layout: TreeLayout) -> Sequences:
    """A layout cut into sequences, on its device."""
    runs = list(_runs(layout.segments))
    ends = lambda lengths: upload(np.cumsum([0, *lengths]).astype(np.int32), layout.device)  # noqa: E731
    queries, keys = [s.length for s in runs], [s.keys for s in runs]
    copied = None
    if sum(keys) > layout.n_tokens:
        parts = [np.arange(start, start + n) for s in runs for start, n in _places(s)]
        copied = upload(np.concatenate(parts), layout.device)
    return Sequences(ends(queries), ends(keys), max(queries), max(keys), copied)


def _runs(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield segments in row order, a prompt and the branch right behind it as one."""
    pending: Segment | None = None
    for s in sorted(segments, key=lambda s: s.start):
        if pending is not None and s.prompt_length and s.start == pending.start + pending.length:
            pending = Segment(pending.start, pending.length + s.length)
            yield pending
            pending = None
            continue
        if pending is not None:
            yield pending
        pending = None
        if s.prompt_length:
            yield s
        else:
            pending = s
    if pending is not None:
        yield pending


def _places(s: Segment) -> list[tuple[int, int]]:
    return [(s.prompt_start, s.prompt_length), (s.start, s.length)]
