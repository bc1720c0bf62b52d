"""Triton kernels that read tiles of logits and turn them into their own gradient, in one pass over memory each.

Torch needs several passes, with a float32 copy of the tile between them. Sums are float32 whatever the tile's format.
The numbers are those of :mod:`afzal.model.head`, whose plain torch code does the work without Triton.

Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from afzal.model.kernels import trials

_BLOCK = 4096  # logits that one program works on at a time
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def fused(logits: Tensor) -> bool:
    """Whether these kernels can take a tile: on a GPU, in a known format, once they have passed their trial."""
    if logits.device.type != "cuda" or logits.dtype not in _TOLERANCE or find_spec("triton") is None:
        return False
    return not _tried(logits.device, logits.dtype)


def scan(logits: Tensor, target: Tensor, lse: Tensor, picked: Tensor, *, scale: float, cap: float | None) -> None:
    """Write each row's log-sum-exp and its target's logit, float32 ``[M]``, as the softmax sees them.

    Args:
        logits: ``[M, V]``, rows contiguous.
        scale, cap: the softmax sees cap tanh(scale logit / cap); a cap of None does nothing.
    """
    _launch(_kernels()[0], (len(logits),), logits, target, lse, picked, scale, cap)


def turn(logits: Tensor, target: Tensor, lse: Tensor, gradient: Tensor, *, scale: float, cap: float | None) -> None:
    """Put gradient (one-hot - softmax), back through cap and scale, in place of the logits ``[M, V]``."""
    grid = (len(logits), -(-logits.shape[1] // _BLOCK))
    _launch(_kernels()[1], grid, logits, target, lse, gradient, scale, cap)


def _launch(kernel: Any, grid: tuple[int, ...], logits: Tensor, *columns: Any) -> None:
    *tensors, scale, cap = columns
    meta = {"vocabulary": logits.shape[1], "capped": cap is not None, "block": _BLOCK, "num_warps": 8}
    on_gpu = logits.device.type == "cuda"  # else it is Triton's interpreter
    with torch.cuda.device(logits.device) if on_gpu else nullcontext():
        kernel[grid](logits, *tensors, logits.stride(0), scale, cap or 1.0, **meta)


@cache
def _kernels() -> tuple[Any, Any]:
    """The two kernels. Defined inside a function, since only machines with a GPU have Triton."""
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    @triton.jit
    def scan_rows(
        logits,
        target,
        lse,
        picked,
        stride,
        scale,
        cap,
        vocabulary: tl.constexpr,
        capped: tl.constexpr,
        block: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        start = logits + row * stride
        top = float("-inf")
        total = 0.0
        for first in range(0, vocabulary, block):
            at = first + tl.arange(0, block)
            inside = at < vocabulary
            shown = tl.load(start + at, mask=inside, other=0.0).to(tl.float32) * scale
            if capped:
                shown = cap * (2.0 * tl.sigmoid(2.0 * shown / cap) - 1.0)
            shown = tl.where(inside, shown, float("-inf"))
            high = tl.maximum(top, tl.max(shown, axis=0))
            total = total * tl.exp(top - high) + tl.sum(tl.exp(shown - high), axis=0)
            top = high
        own = tl.load(start + tl.load(target + row)).to(tl.float32) * scale
        if capped:
            own = cap * (2.0 * tl.sigmoid(2.0 * own / cap) - 1.0)
        tl.store(lse + row, top + tl.log(total))
        tl.store(picked + row, own)

    @triton.jit
    def turn_rows(
        logits,
        target,
        lse,
        gradient,
        stride,
        scale,
        cap,
        vocabulary: tl.constexpr,
        capped: tl.constexpr,
        block: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * block + tl.arange(0, block)
        inside = at < vocabulary
        place = logits + row * stride + at
        shown = tl.load(place, mask=inside, other=0.0).to(tl.float32) * scale
        slope = scale
        if capped:
            bent = 2.0 * tl.sigmoid(2.0 * shown / cap) - 1.0
            slope = scale * (1.0 - bent * bent)
            shown = cap * bent
        own = (at == tl.load(target + row)).to(tl.float32)
        back = tl.load(gradient + row) * (own - tl.exp(shown - tl.load(lse + row))) * slope
        tl.store(place, back.to(logits.dtype.element_ty), mask=inside)

    return scan_rows, turn_rows


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> str:
    return trials.verdict("the fused log-prob head", lambda: trial(device, dtype), _TOLERANCE[dtype])


def trial(device: torch.device, dtype: torch.dtype) -> float:
    """The largest error against plain torch on rows that end within a block, relative to the size."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for scale, cap in ((1.0, None), (0.5, 20.0)):
        logits = (4 * torch.randn(6, _BLOCK + 333, generator=generator)).to(device, dtype)
        target = torch.randint(0, logits.shape[1], (6,), generator=generator).to(device)
        gradient = torch.randn(6, generator=generator).to(device)
        computed = _by_kernels(logits.clone(), target, gradient, scale, cap)
        for a, b in zip(computed, by_definition(logits, target, gradient, scale, cap), strict=True):
            worst = max(worst, float((a.float() - b).norm() / b.norm()))
    return worst


def _by_kernels(
    logits: Tensor, target: Tensor, gradient: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, ...]:
    lse, picked = (torch.empty_like(gradient) for _ in range(2))
    scan(logits, target, lse, picked, scale=scale, cap=cap)
    turn(logits, target, lse, gradient, scale=scale, cap=cap)
    return lse, picked, logits


def by_definition(
    logits: Tensor, target: Tensor, gradient: Tensor, scale: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and target logit ``[M]``, and the logits' gradient ``[M, V]``, by autograd in float32."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.detach().float().requires_grad_()
        values: Tensor = leaf * scale
        values = values if cap is None else cap * torch.tanh(values / cap)
        lse, picked = values.logsumexp(1), values.gather(1, target[:, None])[:, 0]
        (gradient_of_logits,) = torch.autograd.grad(((picked - lse) * gradient).sum(), leaf)
    return lse.detach(), picked.detach(), gradient_of_logits
