"""Log-probs of given targets, straight from hidden states and the output head's weights, with a custom backward pass.

One product computes the logits of the scored tokens in the compute dtype. They are read in tiles that stay in the cache
and turned into their own gradient in place: two passes over them, where autograd's cross-entropy takes six. Sums are
float32. On a GPU Triton does the passes (:mod:`afzal.model.kernels.logits`), if it is installed and agrees with torch.
If the logits would not fit, only their log-sum-exp is kept, and the backward pass recomputes them tile by tile.

Shapes: M scored tokens, d features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from afzal.model.kernels import logits as fused

# A matrix product first lays its weights out in the processor's order, so a few large products beat many small ones.
# Reading logits takes several steps each, between which they should stay in a core's own cache.
TILE_ELEMENTS = 2**24  # logits per matrix product on a CPU, if they are not kept
_CACHED_ELEMENTS = 2**18  # float32 logits that a core works on at a time
_CACHED_ELEMENTS_GPU = 2**26  # the same for a whole GPU, without Triton
KEEP_BYTES = 2**30  # logits that a forward pass keeps for the backward pass rather than recomputing them
KEEP_BYTES_GPU = 2**32  # the same on a GPU
TILE_ELEMENTS_GPU = 2**28  # logits per matrix product on a GPU, if they are not kept


def is_plain(head: nn.Module) -> bool:
    """Whether the head is a single matrix product (with or without a bias) and has no hooks."""
    hooked = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    weight = getattr(head, "weight", None)
    return type(head) is nn.Linear and not hooked and type(weight) in (Tensor, nn.Parameter)


def linear_logps(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, scale: float = 1.0, cap: float | None = None
) -> Tensor:
    """Log-prob ``[M]`` float32 nats of ``target`` ``[M]`` under softmax(cap tanh(scale (hidden W^T + b) / cap)).

    Args:
        hidden: ``[M, d]``.
        weight, bias: ``[V, d]`` and ``[V]`` or None.
        scale, cap: the family's adjustment of its logits; a cap of None does nothing.
    """
    return _LinearLogps.apply(hidden, weight, bias, target, scale, cap)  # pyright: ignore[reportReturnType]


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, cap: float | None
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad[:3])
        limit = KEEP_BYTES_GPU if hidden.device.type == "cuda" else KEEP_BYTES
        keep = needs_gradient and len(target) * weight.shape[0] * hidden.element_size() <= limit
        rows = max(1, len(target)) if keep else _rows(weight.shape[0], hidden.device)
        lse, picked = (hidden.new_empty(len(target), dtype=torch.float32) for _ in range(2))
        logits = None
        for tile in tiles(len(target), rows):
            logits = F.linear(hidden[tile], weight, bias)
            _scan(logits, target[tile], lse[tile], picked[tile], scale, cap)
        if needs_gradient:
            ctx.save_for_backward(hidden, weight, bias, target, lse)
            ctx.kept, ctx.scale, ctx.cap, ctx.rows = logits if keep else None, scale, cap, rows
        return picked - lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden, weight, bias, target, lse = ctx.saved_tensors
        gradient = gradients[0].float().contiguous()
        if ctx.kept is None:
            of_inputs = _recomputed(ctx, hidden, weight, bias, target, lse, gradient)
        else:
            logits, ctx.kept = ctx.kept, None  # its gradient takes its place: a second backward pass recomputes it
            _turn(logits, target, lse, gradient, ctx.scale, ctx.cap)
            of_inputs = _products(ctx.needs_input_grad, logits, hidden, weight, bias)
        return (*of_inputs, None, None, None)


def _recomputed(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with the logits recomputed tile by tile; those of the weights are summed in float32."""
    to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
    d_hidden = torch.empty_like(hidden) if to_hidden else None
    d_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
    d_bias = torch.zeros_like(bias, dtype=torch.float32) if to_bias and bias is not None else None
    for tile in tiles(len(target), ctx.rows):
        logits = F.linear(hidden[tile], weight, bias)
        _turn(logits, target[tile], lse[tile], gradient[tile], ctx.scale, ctx.cap)
        parts = _products(ctx.needs_input_grad, logits, hidden[tile], weight, bias)
        for total, part in ((d_weight, parts[1]), (d_bias, parts[2])):
            if total is not None and part is not None:
                total.add_(part)
        if d_hidden is not None and parts[0] is not None:
            d_hidden[tile] = parts[0]
    cast = lambda total, like: None if total is None else total.to(like.dtype)  # noqa: E731
    return d_hidden, cast(d_weight, weight), cast(d_bias, bias)


def _products(
    needs_gradient: tuple[bool, ...], gradient: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weights and bias from those of the logits, ``gradient`` ``[M, V]``."""
    to_hidden, to_weight, to_bias = needs_gradient[:3]
    return (
        gradient @ weight if to_hidden else None,
        gradient.t() @ hidden if to_weight else None,
        gradient.float().sum(0).to(gradient.dtype) if to_bias and bias is not None else None,
    )


def _scan(logits: Tensor, target: Tensor, lse: Tensor, picked: Tensor, scale: float, cap: float | None) -> None:
    """Fill each row's log-sum-exp and its target's logit, float32, as the softmax sees them."""
    if fused.fused(logits):
        fused.scan(logits, target, lse, picked, scale=scale, cap=cap)
        return
    for tile, buffer in _in_cache(logits):
        values = _softmax_inputs(buffer.copy_(logits[tile]), scale, cap)
        picked[tile] = values.gather(1, target[tile, None])[:, 0]
        largest = values.amax(1, keepdim=True)
        largest.masked_fill_(largest.isinf(), 0.0)
        torch.add(values.sub_(largest).exp_().sum(1).log_(), largest[:, 0], out=lse[tile])


def _turn(logits: Tensor, target: Tensor, lse: Tensor, gradient: Tensor, scale: float, cap: float | None) -> None:
    """Overwrite the logits with their gradient."""
    if fused.fused(logits):
        fused.turn(logits, target, lse, gradient, scale=scale, cap=cap)
        return
    for tile, buffer in _in_cache(logits):
        values = buffer.copy_(logits[tile])
        logits[tile] = _logit_gradient(values, target[tile, None], lse[tile, None], gradient[tile, None], scale, cap)


def _logit_gradient(
    logits: Tensor, target: Tensor, lse: Tensor, gradient: Tensor, scale: float, cap: float | None
) -> Tensor:
    """float32 ``[rows, V]``: gradient (one-hot - softmax), back through cap and scale, in the logits' memory."""
    values = _softmax_inputs(logits, scale, cap)
    slope = None if cap is None else (1 - (values / cap).square_())
    result = values.sub_(lse).exp_().mul_(-gradient).scatter_add_(1, target, gradient)
    result = result if slope is None else result.mul_(slope)
    return result if scale == 1.0 else result.mul_(scale)


def _softmax_inputs(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Float32 logits as the softmax sees them, in place."""
    values = logits.mul_(scale) if scale != 1.0 else logits
    return values if cap is None else values.div_(cap).tanh_().mul_(cap)


def _rows(vocabulary: int, device: torch.device) -> int:
    """Rows per product, for logits that are not kept."""
    return max(1, (TILE_ELEMENTS_GPU if device.type == "cuda" else TILE_ELEMENTS) // vocabulary)


def _in_cache(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows to work on together, with a float32 buffer for them."""
    on_gpu = logits.device.type == "cuda"
    elements = _CACHED_ELEMENTS_GPU if on_gpu else _CACHED_ELEMENTS * torch.get_num_threads()
    rows = min(max(1, elements // logits.shape[1]), len(logits))
    buffer = logits.new_empty(rows, logits.shape[1], dtype=torch.float32)
    for tile in tiles(len(logits), rows):
        yield tile, buffer[: tile.stop - tile.start]


def tiles(n: int, rows: int) -> list[slice]:
    """``n`` rows as slices in order, at most ``rows`` in each."""
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
