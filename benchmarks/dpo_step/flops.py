"""The least work that gives the exact result, and the share of the machine that it uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch


def minimum(counts: np.ndarray, config: Any, *, reference_online: bool) -> float:
    """Floating-point operations of one full fine-tuning update on pairs of these lengths, ``counts`` ``[n, 3]``.

    The prompt once, every branch once, attention only where a token may look, the output head only at response tokens;
    forward and twice as much backward, and one forward more for a reference that is not cached. No recomputation.
    """
    p, c, r = counts.T.astype(float)
    d, layers, width = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    body = layers * (d * head_dim * (2 * heads + 2 * kv) + 3 * d * width)
    attended = p * (p + 1) / 2 + sum(b * (p + (b + 1) / 2) for b in (c, r))
    forward = 2 * body * (p + c + r) + 4 * layers * heads * head_dim * attended + 2 * d * config.vocab_size * (c + r)
    return float(forward.sum()) * (4 if reference_online else 3)


def matmul_peak(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """Floating-point operations per second of a plain matrix product, the best of several shapes and tries."""
    best = 0.0
    side = 8192 if device.type == "cuda" else 2048
    for m, k, n in ((side, width, 4 * width), (side, 4 * width, width), (side, side, side)):
        a, b = (torch.randn(s, dtype=dtype, device=device) for s in ((m, k), (n, k)))
        for _ in range(6):
            _wait(device)
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            _wait(device)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
