"""The least work that gives the exact result, and the share of the machine that it uses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch


def minimum(counts: np.ndarray, config: Any, *, reference_online: bool) -> float:
    """Floating-point operations of one full fine-tuning update on items of these lengths.

    The prompt once, every branch once, attention only where a token may look, the output head only at response tokens;
    forward and twice as much backward, and one forward more for a reference that is not cached. No recomputation.

    Args:
        counts: ``[n, 1 + K]`` tokens of the prompt and of each of K responses.
    """
    tokens, scored = int(counts.sum()), int(counts[:, 1:].sum())
    forward = 2 * body_weights(config) * tokens + 2 * config.hidden_size * config.vocab_size * scored
    return (forward + per_product(config) * looked_at(counts)) * (4 if reference_online else 3)


def body_weights(config: Any) -> int:
    """Weights of all blocks: what each token is multiplied with once."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    attention = config.hidden_size * head_width(config) * heads
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def per_product(config: Any) -> int:
    """Operations of the forward pass for each query-key product, over all layers and heads."""
    return 4 * config.num_hidden_layers * config.num_attention_heads * head_width(config)


def looked_at(counts: np.ndarray) -> float:
    """Query-key pairs in which the query may look at the key; ``counts`` as for :func:`minimum`."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    return float((prompts * (prompts + 1) / 2).sum() + (responses * (prompts + (responses + 1) / 2)).sum())


def head_width(config: Any) -> int:
    """Features of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def matmul_peak(dtype: torch.dtype, device: torch.device, width: int) -> float:
    """Floating-point operations per second of a plain matrix product, the best of several shapes and tries."""
    best = 0.0
    side = 8192 if device.type == "cuda" else 2048
    for m, k, n in ((side, width, 4 * width), (side, 4 * width, width), (side, side, side)):
        a, b = (torch.randn(s, dtype=dtype, device=device) for s in ((m, k), (n, k)))
        for _ in range(6):
            wait(device)
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            wait(device)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
