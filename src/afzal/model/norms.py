"""RMSNorms on a CPU, a few rows at a time, with a custom backward pass.

In `transformers` an RMSNorm is eight operations over the full tensor, and twenty in autograd's backward pass. Each
reads and writes main memory, and a float32 copy of the input and the normed input are kept. Here a block of rows goes
through all steps while it is in a core's cache, and only the input is kept. Forward passes give the same bits;
gradients differ in the last bits.

Shapes: n rows, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from afzal.model.head import tiles
from afzal.model.kernels import trials

_CACHED_ELEMENTS = 2**16  # of one operand, that a core works on at a time
_SMALL = 2**16  # without gradients, a tensor of up to this many elements is in the cache anyway
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a gradient, relative to its size


def fuse_norms(model: nn.Module) -> None:
    """Give the RMSNorms of a `transformers` model this forward pass; on a GPU they still use their own.

    A class gets it once its own forward pass gives the same bits on random numbers and the gradients agree; other
    classes (Gemma's, and OLMo 2's in bf16) keep theirs.
    """
    for module in model.modules():
        name, module_name = type(module).__name__, type(module).__module__
        if name.endswith("RMSNorm") and module_name.startswith("transformers.") and hasattr(module, "variance_epsilon"):
            module.forward = _Norm(module)


def own_norms(model: nn.Module) -> None:
    """Undo :func:`fuse_norms`, for the compiler."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Norm):
            del module.__dict__["forward"]


class _Norm:
    """The forward pass of an RMSNorm: weight x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer

    def __call__(self, hidden_states: Tensor) -> Tensor:
        layer, forward = self.layer, type(self.layer).forward
        if _is_for(hidden_states, layer.weight) and _is_known(forward, hidden_states.dtype):
            return _RMSNorm.apply(hidden_states, layer.weight, layer.variance_epsilon)
        return forward(layer, hidden_states)


def _is_for(x: Tensor, weight: Tensor) -> bool:
    """Whether these are plain CPU tensors in one known format, and large enough to benefit."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in _TOLERANCE:
        return False
    if type(x) is not Tensor or type(weight) not in (Tensor, nn.Parameter) or torch.is_autocast_enabled("cpu"):
        return False
    return torch.is_grad_enabled() or x.numel() > _SMALL


class _RMSNorm(torch.autograd.Function):
    """``[..., d]`` to the same shape, with a weight ``[d]``; keeps the reciprocal root of each row's mean square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, scale = torch.empty_like(rows), rows.new_empty((len(rows), 1), dtype=torch.float32)
        normed, square, rounded = _buffers(rows, torch.float32, torch.float32, x.dtype)
        for block in tiles(len(rows), len(normed)):
            n = block.stop - block.start
            root, high = scale[block], _like(rows[block], normed[:n])
            torch.mean(torch.mul(high, high, out=square[:n]), -1, keepdim=True, out=root)
            high = torch.mul(high, root.add_(eps).rsqrt_(), out=normed[:n])
            torch.mul(weight, _like(high, rounded[:n]), out=out[block])
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            return (*_differentiable(x, weight, ctx.eps, gradients[0]), None)
        of_x, of_weight = ctx.needs_input_grad[:2]
        rows, upstream = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, x.shape[-1])
        d_x = torch.empty_like(rows) if of_x else None
        total = weight.new_zeros(weight.shape, dtype=torch.float32) if of_weight else None
        normed, inner, product, rounded = _buffers(rows, torch.float32, torch.float32, torch.float32, x.dtype)
        for block in tiles(len(rows), len(normed)):
            n = block.stop - block.start
            root, low = scale[block], rounded[:n]
            high = torch.mul(_like(rows[block], normed[:n]), root, out=normed[:n])
            if total is not None:
                total += torch.mul(_like(high, low), upstream[block], out=low).sum(0, dtype=torch.float32)
            if d_x is not None:
                slope = _like(torch.mul(upstream[block], weight, out=low), inner[:n])
                projection = torch.mul(high, slope, out=product[:n]).mean(-1, keepdim=True)
                d_x[block] = slope.addcmul_(high, projection, value=-1).mul_(root)
        return (
            None if d_x is None else d_x.view(x.shape),
            None if total is None else total.to(weight.dtype),
            None,
        )


def _buffers(rows: Tensor, *dtypes: torch.dtype) -> list[Tensor]:
    """Buffers for one block of rows, one per number format."""
    at_once = _CACHED_ELEMENTS * torch.get_num_threads() // rows.shape[1]
    return [rows.new_empty((max(1, min(len(rows), at_once)), rows.shape[1]), dtype=dtype) for dtype in dtypes]


def _like(rows: Tensor, buffer: Tensor) -> Tensor:
    """Rows in the buffer's number format: unchanged, or copied into the buffer."""
    return rows if rows.dtype == buffer.dtype else buffer.copy_(rows)


def _differentiable(x: Tensor, weight: Tensor, eps: float, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of input and weight, from differentiable operations."""
    differentiated = [t for t in (x, weight) if t.requires_grad]
    high = x.float()
    out = weight * (high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    gradients = iter(torch.autograd.grad(out, differentiated, gradient, create_graph=True))
    return tuple(next(gradients) if t.requires_grad else None for t in (x, weight))


@cache
def _is_known(forward: Callable[..., Tensor], dtype: torch.dtype) -> bool:
    """Whether the forward pass of a class computes this norm, tried on a stand-in for its layer."""

    @torch.inference_mode(False)
    @torch.enable_grad()
    def trial() -> float:
        x, weight = _random_tensors(dtype, (70, 1200), (1200,))
        layer = SimpleNamespace(weight=weight, variance_epsilon=1e-5)
        return _distance(forward(layer, x), _RMSNorm.apply(x, weight, 1e-5), (x, weight))

    return not trials.verdict(f"the fused norm for {forward.__qualname__}", trial, _TOLERANCE[dtype])


def _random_tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def _distance(expected: Tensor, actual: Tensor, inputs: tuple[Tensor, ...]) -> float:
    """Infinite if results differ in a bit; else the largest relative error of a gradient."""
    if not torch.equal(expected, actual):
        return float("inf")
    upstream = _random_tensors(expected.dtype, tuple(expected.shape))[0].detach()
    pairs = zip(*(torch.autograd.grad(t, inputs, upstream) for t in (actual, expected)), strict=True)
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs)
