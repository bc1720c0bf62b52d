"""Choose a layer's attention kernel: the first on its device's list that can do the job and has passed its trial.

Before a kernel is used it runs once, forwards and backwards, on a small layout, and must agree with plain attention.
One that does not (another causal alignment, a missing compiler) is skipped, and ``kernels.notes()`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from afzal.model.kernels import flex, ragged, trials
from afzal.model.kernels.spans import visible
from afzal.tokens.attention_blocks import Segment, TreeLayout

Kernel = Literal["blocks", "ragged", "flex"]
BLOCKS: Kernel = "blocks"

# In order of preference, by device and whether numbers have 16 bits. `python -m benchmarks.attention` measures it; the
# CUDA order follows from the arithmetic (ragged: fewest products, no padding), not from measurements.
_PREFERENCE: dict[tuple[str, bool], tuple[Kernel, ...]] = {("cuda", True): ("ragged", "flex")}

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest error of output and gradients, relative to their size; a wrong mask is off by 0.3 or more."""

_forced: list[Kernel] = []  # not a context variable: the backward pass recomputes layers in its own threads


@dataclass(frozen=True, slots=True)
class Job:
    """What a layer asks of attention.

    Attributes:
        width: features per head.
        window: of a sliding-window layer, in positions.
        softcap: of its scores.
        unsupported: whether the layer needs dropout or sinks, which no kernel here supports.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    width: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    unsupported: bool = False


def kernel_for(job: Job) -> Kernel:
    """The kernel for a layer.

    Raises:
        ValueError: the forced kernel cannot do the job.
    """
    if _forced:
        if reason := why_unable(_forced[-1], job):
            raise ValueError(f"attention kernel {_forced[-1]!r} cannot be used here: {reason}")
        return _forced[-1]
    for kernel in _PREFERENCE.get((job.device.type, job.dtype.itemsize == 2), ()):
        if not why_unable(kernel, job) and not distrusted(kernel, job):
            return kernel
    return BLOCKS


def why_unable(kernel: Kernel, job: Job) -> str:
    """Why a kernel cannot do a job, from its properties alone; empty if it can."""
    if kernel == BLOCKS:
        return ""
    if job.unsupported:
        return "it has neither dropout nor sinks"
    if kernel == "ragged":
        return "flash attention has no soft-cap" if job.softcap else ragged.why_unable(job.dtype, job.width)
    return flex.why_unable(job.dtype, job.width)


def run(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, layout: TreeLayout, job: Job) -> Tensor:
    """Query ``[N, H, D]``, key and value ``[N, kv heads, D]`` to ``[N, H, D]``."""
    if kernel == "ragged":
        return ragged.attend(q, k, v, layout, scale=job.scale, window=job.window)
    return flex.attend(q, k, v, layout, scale=job.scale, window=job.window, softcap=job.softcap)


@contextmanager
def forced(kernel: Kernel) -> Iterator[None]:
    """Make every layer use this kernel inside the block, untried: for tests and benchmarks."""
    _forced.append(kernel)
    try:
        yield
    finally:
        _forced.pop()


def distrusted(kernel: Kernel, job: Job) -> str:
    """Why a kernel's results cannot be trusted, from one trial; empty if they can."""
    # the trial has its own window, short enough to cut; each kind of job is tried once
    return _tried(kernel, replace(job, window=_WINDOW if job.window is not None else None))


@cache
def _tried(kernel: Kernel, job: Job) -> str:
    return trials.verdict(f"attention kernel {kernel}", lambda: trial(kernel, job), _TOLERANCE[job.dtype])


_WINDOW = 50
_TRIAL = tuple(
    Segment(*numbers)
    for numbers in (
        *((0, 70), (70, 60, 0, 70), (130, 90, 0, 70)),
        *((220, 131), (351, 1, 220, 131), (352, 75, 220, 131), (427, 40, 220, 131)),
    )
)


def trial(kernel: Kernel, job: Job) -> float:
    """The largest error of output and gradients against plain attention in float32, relative to their size.

    On two trees with five branches. The numbers come from a separate generator, not from one that a run depends on.
    """
    n = sum(s.length for s in _TRIAL)
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, job.heads, job.width), *[(n, job.kv_heads, job.width)] * 2, (n, job.heads, job.width)]
    q, k, v, upstream = (torch.randn(s, generator=generator).to(job.device, job.dtype) for s in shapes)
    with torch.inference_mode(False), torch.enable_grad():
        layout = TreeLayout(_TRIAL, n, job.device)
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        exact = [t.float().requires_grad_() for t in (q, k, v)]
        output = run(kernel, inputs[0], inputs[1], inputs[2], layout, job)
        expected = plain(exact[0], exact[1], exact[2], layout, job)
        gradients = torch.autograd.grad(output, inputs, upstream)
        expected_gradients = torch.autograd.grad(expected, exact, upstream.float())
    pairs = zip((output.detach(), *gradients), (expected.detach(), *expected_gradients), strict=True)
    return max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)


def plain(q: Tensor, k: Tensor, v: Tensor, layout: TreeLayout, job: Job) -> Tensor:
    """Attention by definition, with a table of all pairs of positions: the standard that kernels are compared with."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = (t.transpose(0, 1) for t in (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
    scores = q @ k.transpose(-1, -2) * job.scale
    scores = scores if job.softcap is None else job.softcap * torch.tanh(scores / job.softcap)
    mask = torch.from_numpy(visible(layout, job.window)).to(q.device)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v).transpose(0, 1)
