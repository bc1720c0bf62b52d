"""Experts with LoRA adapters, summed once for inference.

PEFT adds an expert's adapter to its weights in every forward pass. With one token per row that takes far longer than
the pass itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from afzal.model.memory import free_bytes

_SHARE_OF_FREE = 1 / 2  # of the device's memory: the answers' keys and values still need room


@contextmanager
def experts_added_once(model: nn.Module) -> Iterator[None]:
    """Replace experts and their adapters by their sums inside the block, and restore them at the end.

    For passes without gradients while no weight changes. Results are bit-identical. Does nothing if the sums, as large
    as the experts, would take more than half of the free memory.
    """
    wrappers = _active(model)
    places = [(w, w.get_base_layer()._parameters, w.parameter_name) for w in wrappers]
    weights = [parameters[name] for _, parameters, name in places]
    if not _fit(weights):
        yield
        return
    sums = [_sum(w) for w in wrappers]
    try:
        for (w, parameters, name), value in zip(places, sums, strict=True):
            parameters[name], w._disable_adapters = nn.Parameter(value, requires_grad=False), True
        yield
    finally:
        for (w, parameters, name), weight in zip(places, weights, strict=True):
            parameters[name], w._disable_adapters = weight, False


def _active(model: nn.Module) -> list[Any]:
    """PEFT's parameter wrappers whose adapters are active."""
    wrappers: list[Any] = [m for m in model.modules() if hasattr(m, "parameter_name") and hasattr(m, "_activate_lora")]
    return [w for w in wrappers if not w.disable_adapters and not w.merged]


@torch.no_grad()
def _sum(wrapper: Any) -> torch.Tensor:
    with wrapper._activate_lora(wrapper.active_adapters):  # as its own forward pass does
        return getattr(wrapper.get_base_layer(), wrapper.parameter_name)


def _fit(weights: list[Any]) -> bool:
    size = sum(p.numel() * p.element_size() for p in weights)
    free = free_bytes(weights[0].device) if weights else None
    return free is None or size <= _SHARE_OF_FREE * free
