"""Find the fastest attention kernel for trees, and check each kernel's numbers: one layer, forward and backward.

    python -m benchmarks.attention --out attention-cuda.json             # all shapes and kernels on a GPU
    python -m benchmarks.attention --device cpu --tiny                   # the same, small, for a trial run
    python -m benchmarks.attention --shapes hh --models 8b --kernels ragged blocks

A row is packed with pairs of a shape up to ``--tokens`` tokens. First, every kernel's output and gradients are compared
with the unshared path, where each response follows its own copy of the prompt, in float32. Unsupported cases are
skipped, with the reason. The order of preference is in `afzal.model.kernels.choose`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afzal.model import kernels
from afzal.model.attention import tree_attention
from afzal.model.kernels import choose
from afzal.tokens.attention_blocks import Segment, TreeLayout
from benchmarks.dpo_step import shapes
from benchmarks.dpo_step.flops import wait
from benchmarks.machine import about_run, refuse_if_busy

MODELS = {"1b": (32, 8, 64), "8b": (32, 8, 128), "tiny": (4, 2, 16)}
"""Query heads, key heads and features per head: Llama-3.2-1B, Llama-3.1-8B, and a toy size."""

KERNELS = ("blocks", "ragged", "flex")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    options = _arguments()
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    if device.type == "cpu" and not (options.force or options.tiny):
        refuse_if_busy()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    about = about_run("benchmarks.attention", ["afzal", "torch"], threads=torch.get_num_threads(), device=gpu)
    cases = [case(s, m, options, device, dtype) for m in options.models for s in options.shapes]
    record = {"about": about | {"dtype": options.dtype}, "cases": cases}
    print(markdown(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + os.linesep)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=sorted(shapes.SHAPES), default=["hh", "tldr", "uf", "long"])
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["1b", "8b"])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--tokens", type=int, default=16384, help="maximum tokens of a row")
    parser.add_argument("--window", type=int, help="size of the sliding window, in tokens")
    parser.add_argument("--softcap", type=float, help="softcap of the attention scores")
    parser.add_argument("--repeats", type=int, default=10, help="timed passes, after two untimed ones")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="run even if the machine is busy")
    parser.add_argument("--tiny", action="store_true", help="few tokens and small heads, for a trial run")
    options = parser.parse_args()
    if options.tiny:
        options.models, options.tokens, options.repeats = ["tiny"], 600, 1
    return options


def case(
    shape: str, model: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """All kernels on one row: seconds of each pass, and the largest relative error."""
    heads, kv_heads, width = MODELS[model]
    layout = row(shape, options.tokens, device)
    job = choose.Job(device, dtype, heads, kv_heads, width, width**-0.5, options.window, options.softcap)
    drawn = torch.Generator().manual_seed(0)
    sizes = [(n, layout.n_tokens, width) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, upstream = (torch.randn(s, generator=drawn).to(device, dtype)[None] for s in sizes)
    expected = _values(lambda *t: unshared(*(x[0].float() for x in t), layout, job)[None], [q, k, v], upstream)
    result: dict[str, Any] = {"shape": shape, "model": model, "tokens": layout.n_tokens, "kernels": {}, "left_out": {}}
    for kernel in options.kernels:
        if reason := choose.why_unable(kernel, job):
            result["left_out"][kernel] = reason
            continue
        call = _call(kernel, layout, job)
        try:
            error = _error(_values(call, [q, k, v], upstream), expected)
            seconds = _timed(call, [q, k, v], upstream, options.repeats, device)
        except Exception as fault:  # of a compiler or a missing kernel; the other kernels continue
            result["left_out"][kernel] = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
            continue
        result["kernels"][kernel] = {"seconds": seconds, "error": error}
    return result


def row(shape: str, tokens: int, device: torch.device) -> TreeLayout:
    """As many pairs of a shape as fit into ``tokens``, one after another; at least one, truncated if necessary."""
    counts, _ = shapes.lengths(shape, 512, 0, None)
    segments: list[Segment] = []
    at = 0
    for p, *branches in counts.tolist():
        if at + p + sum(branches) > tokens:
            if segments:
                break
            p, branches = tokens // 2, [tokens // 4] * 2
        segments.append(Segment(at, p))
        start, at = at, at + p
        for n in branches:
            segments.append(Segment(at, n, start, p))
            at += n
    return TreeLayout(segments, at, device)


def unshared(q: Tensor, k: Tensor, v: Tensor, layout: TreeLayout, job: choose.Job) -> Tensor:
    """Map query ``[H, N, D]``, key and value ``[kv heads, N, D]`` to ``[N, H, D]``; segments see their prompt."""
    groups = job.heads // job.kv_heads
    k, v = (t.repeat_interleave(groups, 0) for t in (k, v))
    outputs = []
    for s in sorted(layout.segments, key=lambda s: s.start):
        segment = slice(s.start, s.start + s.length)
        prompt = slice(s.prompt_start, s.prompt_start + s.prompt_length)
        keys, values = (torch.cat([t[:, prompt], t[:, segment]], 1) for t in (k, v))
        behind = torch.arange(s.length, device=q.device)[:, None] + s.prompt_length
        behind = behind - torch.arange(s.keys, device=q.device)[None, :]
        mask = (behind >= 0) & (behind < (job.window or s.keys + 1))
        outputs.append(_plain(q[:, segment], keys, values, mask, job).transpose(0, 1))
    return torch.cat(outputs)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, job: choose.Job) -> Tensor:
    if job.softcap is None:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=job.scale)[0]
    scores = job.softcap * torch.tanh(q @ k.transpose(-1, -2) * job.scale / job.softcap)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def _call(kernel: choose.Kernel, layout: TreeLayout, job: choose.Job) -> Callable[..., Tensor]:
    """The kernel as a layer calls it: ``[1, heads, N, D]`` in, ``[1, N, H, D]`` out."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with kernels.forced(kernel):
            extras = {"tree": layout, "sliding_window": job.window, "softcap": job.softcap}
            return tree_attention(nn.Module(), q, k, v, None, job.scale, **extras)[0]

    return call


def _values(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Output and gradients, in float32."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = call(*leaves)
    gradients = torch.autograd.grad(out, leaves, upstream.transpose(1, 2).to(out.dtype))
    return [t.detach().float() for t in (out, *gradients)]


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(actual, expected, strict=True))


def _timed(
    call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor, repeats: int, device: torch.device
) -> list[float]:
    leaves, back = [t.detach().clone().requires_grad_() for t in inputs], upstream.transpose(1, 2)
    seconds = []
    for turn in range(repeats + 2):
        wait(device)
        began = time.perf_counter()
        torch.autograd.grad(call(*leaves), leaves, back)
        wait(device)
        if turn >= 2:
            seconds.append(time.perf_counter() - began)
    return seconds


def winner(case: dict[str, Any]) -> str:
    """The kernel with the lowest median; "" if none ran."""
    medians = {name: statistics.median(f["seconds"]) for name, f in case["kernels"].items()}
    return min(medians, key=lambda name: medians[name], default="")


def markdown(record: dict[str, Any]) -> str:
    """The figures as a table, with the fastest kernel of every row."""
    about = record["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{about['date']}, {about['device']}, {versions}, {about['dtype']}",
        "",
        f"| shape | heads of | tokens | {' | '.join(f'{k} ms (error)' for k in KERNELS)} | fastest |",
        "|---" * (len(KERNELS) + 4) + "|",
    ]
    for c in record["cases"]:
        cells = [_cell(c, kernel) for kernel in KERNELS]
        lines.append(f"| {c['shape']} | {c['model']} | {c['tokens']} | {' | '.join(cells)} | {winner(c)} |")
    reasons = {f"{name}: {why}" for c in record["cases"] for name, why in c["left_out"].items()}
    return "\n".join([*lines, *(f"\nLeft out: {reason}" for reason in sorted(reasons))])


def _cell(case: dict[str, Any], kernel: str) -> str:
    figures = case["kernels"].get(kernel)
    return f"{1e3 * statistics.median(figures['seconds']):.2f} ({figures['error']:.1e})" if figures else "-"


if __name__ == "__main__":
    main()
