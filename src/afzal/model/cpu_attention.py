"""Tree attention on a CPU by batched products, with a custom backward pass.

As separate operations, attention copies queries, keys and values when it gathers them, when it scales them and for each
product, and autograd does the same in the backward pass. Here all heads of all blocks are gathered in the order in
which the products read them, and products write results to where they are gathered from. Forward passes give the same
bits; gradients differ in the last bits.

Shapes: N row positions, H query heads, V key-value heads, D head width; G segments of Q query slots and K key slots in
a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from afzal.tokens.attention_blocks import Plan

_CHUNK = 256  # queries of a causal block that are processed together; they skip later keys


def causal_chunks(slots: int) -> list[tuple[slice, int]]:
    """Chunks of a causal block's queries to process together, and how many keys each may see."""
    starts = range(0, slots, _CHUNK)
    return [(slice(start, end), end) for start in starts for end in [min(start + _CHUNK, slots)]]


@dataclass(frozen=True, slots=True)
class Part:
    """A block, and where its slots start among those of all blocks."""

    groups: int
    slots: int
    keys: int
    first_slot: int
    first_key: int
    bias: Tensor
    causal: bool

    def chunks(self) -> list[tuple[slice, int]]:
        """Query slots to process together, and how many keys they may see."""
        return causal_chunks(self.slots) if self.causal else [(slice(0, self.slots), self.keys)]


@dataclass(frozen=True, slots=True)
class Rows:
    """A row's plan, head by head.

    Attributes:
        queries, keys: int64, rows of ``[N H, D]`` and ``[N V, D]``, by block, segment, head and slot.
        inverse: ``[M H]`` int64, the index in ``queries`` of every needed position and head.
        needed: ``[M]`` int64, those positions; None if all N are needed.
    """

    parts: tuple[Part, ...]
    queries: Tensor
    keys: Tensor
    inverse: Tensor
    needed: Tensor | None


def rows_of(plan: Plan, heads: int, kv_heads: int, dtype: torch.dtype) -> Rows:
    """Convert a plan for ``heads`` query heads and ``kv_heads`` key-value heads, in the scores' number format."""
    shapes = [block.shape for block in plan.blocks]
    slots, keys = ([0, *accumulate(g * n[k] for g, *n in shapes)] for k in (0, 1))
    parts = tuple(
        Part(*block.shape, q, k, block.bias_in(dtype), block.mask is None)
        for block, q, k in zip(plan.blocks, slots, keys, strict=False)
    )
    of_queries, of_keys = ([(g, n[k]) for g, *n in shapes] for k in (0, 1))
    place = torch.arange(len(plan.queries) * heads)
    of_slot = torch.empty_like(place)
    of_slot[_ordered(place.view(-1, heads), of_queries)] = place
    return Rows(
        parts,
        queries=_ordered(_of_heads(plan.queries, heads), of_queries),
        keys=_ordered(_of_heads(plan.keys, kv_heads), of_keys),
        inverse=of_slot.view(-1, heads)[plan.inverse].flatten(),
        needed=plan.needed,
    )


def _of_heads(positions: Tensor, heads: int) -> Tensor:
    """``[slots, heads]``: indices into ``[N heads, D]`` of the heads at these positions."""
    return positions[:, None] * heads + torch.arange(heads)


def _ordered(rows: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """``[slots, heads]`` flattened in the order block, segment, head, slot; ``shapes`` gives segments and slots per
    block."""
    parts = rows.split([g * n for g, n in shapes])
    ordered = [part.unflatten(0, shape).transpose(1, 2).flatten() for part, shape in zip(parts, shapes, strict=True)]
    return torch.cat(ordered)


def attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, differentiable: Callable[..., Tensor]
) -> Tensor:
    """Query ``[N, H, D]``, keys and values ``[N, V, D]`` to ``[N, H, D]``.

    Args:
        differentiable: the same by operations that can be differentiated twice.
    """
    return _Products.apply(q, k, v, rows, scale, differentiable)


class _Products(torch.autograd.Function):
    """Softmax attention of every part in two products; keeps the attention weights and the inputs."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, differentiable: Callable[..., Tensor]
    ) -> Tensor:
        heads, width = q.shape[1:]
        gathered = _gather(q, k, v, rows, scale)
        out, saved = torch.empty_like(gathered[0]), []
        for part in rows.parts:
            queries, keys, values, results = _of_part(part, heads, k.shape[1], *gathered, out)
            for chunk, n_keys in part.chunks():
                folded = _folded(queries, chunk)
                scores = torch.bmm(folded, keys[:, :n_keys].transpose(1, 2)).view(part.groups, heads, -1, n_keys)
                weights = scores.add_(part.bias[..., chunk, :n_keys]).softmax(-1).view(*folded.shape[:2], n_keys)
                _put(results, chunk, torch.bmm(weights, values[:, :n_keys]))
                saved.append(weights)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.settings = rows, scale, differentiable
        return spread(out.index_select(0, rows.inverse).view(-1, heads, width), rows.needed, len(q))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, *saved = ctx.saved_tensors
        rows, scale, differentiable = ctx.settings
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return (*_differentiable(differentiable, (q, k, v), gradients[0]), None, None, None)
        heads, kv_heads = q.shape[1], k.shape[1]
        weights_of_chunks, gathered = iter(saved), _gather(q, k, v, rows, scale)
        upstream = torch.zeros_like(gathered[0])  # 0 for slots that repeat a position
        arrived = gradients[0] if rows.needed is None else gradients[0].index_select(0, rows.needed)
        upstream.index_copy_(0, rows.inverse, arrived.reshape(-1, q.shape[2]))
        for part in rows.parts:
            queries, keys, values, arrived = _of_part(part, heads, kv_heads, *gathered, upstream)
            chunks = part.chunks()
            sums = [torch.zeros_like(t) if len(chunks) > 1 else t for t in (keys, values)]
            for chunk, n_keys in chunks:
                # gradients overwrite what has been read for the last time; the queries' overwrite the upstream ones
                weights, slope = next(weights_of_chunks), _folded(arrived, chunk)
                of_weights = torch.bmm(slope, values[:, :n_keys].transpose(1, 2))
                _add(sums[1], n_keys, len(chunks) > 1, weights.transpose(1, 2), slope)
                slope = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                _put(arrived, chunk, torch.bmm(slope, keys[:, :n_keys]))
                _add(sums[0], n_keys, len(chunks) > 1, slope.transpose(1, 2), _folded(queries, chunk))
            if len(chunks) > 1:
                keys.copy_(sums[0])
                values.copy_(sums[1])
        of_q = upstream.mul_(scale).index_select(0, rows.inverse).view(-1, *q.shape[1:])
        of_kv = (_summed(t, rows.keys, k) for t in gathered[1:])
        return (spread(of_q, rows.needed, len(q)), *of_kv, None, None, None)


def _gather(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values of all slots. They are gathered again for the backward pass, since keys occupy
    one slot per branch."""
    q, k, v = (t.reshape(-1, t.shape[2]) for t in (q, k, v))
    return q.index_select(0, rows.queries).mul_(scale), k.index_select(0, rows.keys), v.index_select(0, rows.keys)


def spread(values: Tensor, places: Tensor | None, n: int) -> Tensor:
    """``[M, ...]`` at these M of n places, with zeros elsewhere; unchanged if ``places`` is None."""
    return values if places is None else values.new_zeros(n, *values.shape[1:]).index_copy(0, places, values)


def _of_part(
    part: Part, heads: int, kv_heads: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of a part: queries and results ``[G V, H/V, Q, D]``, whose heads share keys; keys and values
    ``[G V, K, D]``."""
    first, last = part.first_slot * heads, (part.first_slot + part.groups * part.slots) * heads
    shape = part.groups * kv_heads, heads // kv_heads, part.slots, -1
    keys = slice(part.first_key * kv_heads, (part.first_key + part.groups * part.keys) * kv_heads)
    k, v = (t[keys].view(part.groups * kv_heads, part.keys, -1) for t in (k, v))
    return q[first:last].view(shape), k, v, out[first:last].view(shape)


def _folded(rows: Tensor, chunk: slice) -> Tensor:
    """Slots of ``[G V, H/V, Q, D]``, with heads that share keys stacked along the query axis."""
    return rows[:, :, chunk].flatten(1, 2)


def _put(rows: Tensor, chunk: slice, values: Tensor) -> None:
    rows[:, :, chunk] = values.view(len(rows), rows.shape[1], -1, rows.shape[3])


def _add(rows: Tensor, n_keys: int, several: bool, left: Tensor, right: Tensor) -> None:
    """Write a product to ``rows``; with several chunks, add it to the first ``n_keys`` rows."""
    if several:
        rows[:, :n_keys] += torch.bmm(left, right)
    else:
        torch.bmm(left, right, out=rows)


def _summed(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Sum the slots of each position."""
    total = torch.zeros_like(like, memory_format=torch.contiguous_format)
    total.view(-1, like.shape[2]).index_add_(0, index, rows)
    return total


def _differentiable(
    fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients from differentiable operations."""
    differentiated = [t for t in inputs if t.requires_grad]
    gradients = iter(torch.autograd.grad(fn(*inputs), differentiated, gradient, create_graph=True))
    return tuple(next(gradients) if t.requires_grad else None for t in inputs)
