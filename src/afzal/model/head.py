"""Log-probs of given targets straight from hidden states and the output head's weights, with their own backward pass.

The logits of the scored tokens are made once, in the compute dtype, read in tiles that stay in the cache, and turned
into their own gradient in place: two passes over them, where autograd's cross-entropy takes six. Sums are float32.
On a GPU the passes are Triton's (:mod:`afzal.model.kernels.logits`), where it is there and agrees with plain torch.
Where the logits would not fit, only their log-sum-exp is kept and the backward pass makes them again, tile by tile.

Shapes: M scored tokens, d features, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from afzal.model.kernels import logits as fused

TILE_ELEMENTS = 2**22  # float32 logits at work at once
KEEP_BYTES = 2**30  # logits of one forward pass that are kept for the backward pass rather than recomputed
KEEP_BYTES_GPU = 2**32  # the same on a GPU
TILE_ELEMENTS_GPU = 2**28  # logits made by one matrix product of a GPU, where they are not kept


def is_plain(head: nn.Module) -> bool:
    """Whether the head is one matrix product (and perhaps a bias) that nothing hooks into."""
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
        scale, cap: what the family does to its logits; a cap of None does nothing.
    """
    return _LinearLogps.apply(hidden, weight, bias, target, scale, cap)  # pyright: ignore[reportReturnType]


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, cap: float | None
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[:3])
        room = KEEP_BYTES_GPU if hidden.device.type == "cuda" else KEEP_BYTES
        keep = wanted and len(target) * weight.shape[0] * hidden.element_size() <= room
        rows = _rows(len(target), weight.shape[0], hidden.device, keep)
        whole = keep and rows >= len(target)
        kept = hidden.new_empty(len(target) if keep and not whole else 0, weight.shape[0])
        lse, picked = (hidden.new_empty(len(target), dtype=torch.float32) for _ in range(2))
        for at in _tiles(len(target), rows):
            logits = F.linear(hidden[at], weight, bias)
            if whole:
                kept = logits
            elif keep:
                kept[at] = logits
            _scan(logits, target[at], lse[at], picked[at], scale, cap)
        if wanted:
            ctx.save_for_backward(hidden, weight, bias, target, lse)
            ctx.kept, ctx.scale, ctx.cap, ctx.rows = kept if keep else None, scale, cap, rows
        return picked - lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden, weight, bias, target, lse = ctx.saved_tensors
        gradient, rows = gradients[0].float().contiguous(), ctx.rows
        if ctx.kept is None:
            found = _recomputed(ctx, hidden, weight, bias, target, lse, gradient)
        else:
            kept, ctx.kept = ctx.kept, None  # its place is taken by its gradient: a second backward makes it again
            for at in _tiles(len(target), rows):
                _turn(kept[at], target[at], lse[at], gradient[at], ctx.scale, ctx.cap)
            found = _products(ctx.needs_input_grad, kept, hidden, weight, bias)
        return (*found, None, None, None)


def _recomputed(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with the logits recomputed, so that one tile is alive; those of the weights are summed in float32."""
    to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
    d_hidden = torch.empty_like(hidden) if to_hidden else None
    d_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
    d_bias = torch.zeros_like(bias, dtype=torch.float32) if to_bias and bias is not None else None
    for at in _tiles(len(target), ctx.rows):
        logits = F.linear(hidden[at], weight, bias)
        _turn(logits, target[at], lse[at], gradient[at], ctx.scale, ctx.cap)
        parts = _products(ctx.needs_input_grad, logits, hidden[at], weight, bias)
        for total, part in ((d_weight, parts[1]), (d_bias, parts[2])):
            if total is not None and part is not None:
                total.add_(part)
        if d_hidden is not None and parts[0] is not None:
            d_hidden[at] = parts[0]
    cast = lambda total, like: None if total is None else total.to(like.dtype)  # noqa: E731
    return d_hidden, cast(d_weight, weight), cast(d_bias, bias)


def _products(
    wanted: tuple[bool, ...], back: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weights and bias from those of the logits, ``back`` ``[M, V]``."""
    to_hidden, to_weight, to_bias = wanted[:3]
    return (
        back @ weight if to_hidden else None,
        back.t() @ hidden if to_weight else None,
        back.float().sum(0).to(back.dtype) if to_bias and bias is not None else None,
    )


def _scan(logits: Tensor, target: Tensor, lse: Tensor, picked: Tensor, scale: float, cap: float | None) -> None:
    """Fill each row's log-sum-exp and its target's logit, float32, as the softmax sees them."""
    if fused.fused(logits):
        fused.scan(logits, target, lse, picked, scale=scale, cap=cap)
        return
    for at in _tiles(len(target), _rows_in_float32(logits)):
        shown = _shown(logits[at], scale, cap)
        torch.logsumexp(shown, 1, out=lse[at])
        picked[at] = shown.gather(1, target[at, None])[:, 0]


def _turn(logits: Tensor, target: Tensor, lse: Tensor, gradient: Tensor, scale: float, cap: float | None) -> None:
    """Put the gradient of the logits in their place."""
    if fused.fused(logits):
        fused.turn(logits, target, lse, gradient, scale=scale, cap=cap)
        return
    for at in _tiles(len(target), _rows_in_float32(logits)):
        logits[at] = _logit_gradient(logits[at], target[at], lse[at], gradient[at], scale, cap)


def _logit_gradient(
    logits: Tensor, target: Tensor, lse: Tensor, gradient: Tensor, scale: float, cap: float | None
) -> Tensor:
    """float32 ``[rows, V]``: gradient (one-hot - softmax), back through cap and scale."""
    shown = _shown(logits, scale, cap)
    slope = None if cap is None else (1 - (shown / cap).square_())
    back = shown.sub_(lse[:, None]) if shown is not logits else shown - lse[:, None]
    back.exp_().mul_(-gradient[:, None])
    back.scatter_add_(1, target[:, None], gradient[:, None])
    back = back if slope is None else back.mul_(slope)
    return back if scale == 1.0 else back.mul_(scale)


def _shown(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Logits as the softmax sees them, float32."""
    shown = logits.float()
    shown = shown * scale if scale != 1.0 else shown
    return shown if cap is None else torch.tanh(shown / cap) * cap


def _rows(scored: int, vocabulary: int, device: torch.device, keep: bool) -> int:
    """Rows of a tile. What a GPU keeps it makes in one product: its memory is its cache."""
    if device.type != "cuda":
        return max(1, TILE_ELEMENTS // vocabulary)
    return scored if keep else max(1, TILE_ELEMENTS_GPU // vocabulary)


def _rows_in_float32(logits: Tensor) -> int:
    """Rows that plain torch works on at once, in copies of twice or four times their size."""
    elements = TILE_ELEMENTS if logits.device.type != "cuda" else 16 * TILE_ELEMENTS
    return max(1, elements // logits.shape[1])


def _tiles(n: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
