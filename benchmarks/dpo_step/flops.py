"""The least work that gives the exact result, and the share of the machine that it uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from afzal import plan
from afzal.plan import Shape, flops, shape_of
from afzal.plan.flops import attended_pairs
from benchmarks.machine import card

__all__ = [
    "attended_pairs",
    "body_weights",
    "head_width",
    "matmul_peak",
    "matmul_rates",
    "minimum",
    "parameters",
    "per_product",
    "predicting",
    "skipped",
    "stated_peak",
    "wait",
]


def minimum(counts: np.ndarray, config: Any, *, reference_online: bool, rank: int = 0) -> float:
    """Floating-point operations of one update on items of these lengths.

    Counts the prompt once, every branch once, attention only to visible tokens, and the output head only at response
    tokens; backward costs twice as much as forward, and an uncached reference costs one more forward. No recomputation.
    The last block counts for the positions that predict a response's tokens, and its keys and values for all.

    Args:
        counts: ``[n, 1 + K]`` tokens of the prompt and of each of K responses.
        rank: rank of the LoRA adapters, with which frozen weights need no gradient; 0 if all weights train.
    """
    passes = flops.Passes(forward=float(reference_online), rank=rank)
    matrices, attention = skipped(counts, config)
    saved = matrices * (2 if rank else 3) + 3 * attention + passes.forward * (matrices + attention)
    return flops.update_flops(_shape(config), flops.lengths(counts), passes) - saved


def skipped(counts: np.ndarray, config: Any) -> tuple[float, float]:
    """Operations of one forward pass that the last block need not compute: products with weights, and of attention."""
    shape = _shape(config)
    keys_and_values = 2 * shape.width * shape.kv_heads * shape.head_width
    tokens = float(counts.sum()) - predicting(counts)[0]
    pairs = flops.attended_pairs(counts) - predicting(counts)[1]
    weights = flops.body_weights(shape) / shape.layers - keys_and_values
    return 2.0 * weights * tokens, flops.per_product(shape) / shape.layers * pairs


def predicting(counts: np.ndarray) -> tuple[float, float]:
    """Positions that predict a response's token, and the query-key pairs of their queries."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    inner = np.maximum(responses - 1, 0)  # the last token of a prompt predicts the first of all its responses
    pairs = prompts.sum() + (inner * prompts + inner * (inner + 1) / 2).sum()
    return float(len(counts) + inner.sum()), float(pairs)


def parameters(config: Any) -> int:
    """Number of weights of the model, counting tied ones once."""
    return plan.parameters(_shape(config))


def body_weights(config: Any) -> int:
    """Weights of all blocks, with each of which a token is multiplied once."""
    return flops.body_weights(_shape(config))


def per_product(config: Any) -> int:
    """Operations of the forward pass for each query-key product, over all layers and heads."""
    return flops.per_product(_shape(config))


def head_width(config: Any) -> int:
    """Features of one attention head."""
    return _shape(config).head_width


def _shape(config: Any) -> Shape:
    return shape_of(config.to_dict())


def matmul_peak(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """Floating-point operations per second of a plain matrix product, the best over several shapes and repeats."""
    return max(matmul_rates(dtype, device, width))


def matmul_rates(dtype: torch.dtype, device: torch.device, width: int) -> list[float]:
    """Floating-point operations per second of plain matrix products, one after another.

    On a machine with shared cores, the mean is the current speed, and the best is the speed without other work."""
    rates = []
    side = 8192 if device.type == "cuda" else 2048
    for m, k, n in ((side, width, 4 * width), (side, 4 * width, width), (side, side, side)):
        a, b = (torch.randn(s, dtype=dtype, device=device) for s in ((m, k), (n, k)))
        for _ in range(6):
            wait(device)
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            wait(device)
            rates.append(2 * m * k * n / (time.perf_counter() - start))
    return rates


def stated_peak(gpu: str) -> float | None:
    """The vendor's dense bf16 operations per second for a GPU of this name; None if unknown."""
    entry = card(gpu)
    return entry.bf16 if entry else None


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
