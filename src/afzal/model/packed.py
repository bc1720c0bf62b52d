"""Linear layers whose weights are laid out once for the CPU's matrix products, for inference.

In a product with few rows, most of the time goes into reordering the weights for the processor, and a plain layer does
that at every token. A packed layer does it once. The products are oneDNN's either way; in bf16 results are
bit-identical, in float32 sums may be taken in another order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from afzal.runs.environment import memory_bytes

_PLAIN_CALLS = 4  # packing takes about as long as four products with few rows, so shorter answers do without it
_LEAST = 2**16  # weights of a layer for which packing pays
_SHARE_OF_MEMORY = 1 / 8  # of the machine's, for the packed weights of all its processes together


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Pack the model's layers inside the block, for forward passes without gradients; unpack them at the end.

    A layer is packed at its fifth call, and then holds a second copy of its weights until the end of the block; weights
    must not change in between. Does nothing on a GPU, on a processor without fast products in the model's number
    format, or if the copies would take more than an eighth of the machine's memory.
    """
    layers = _layers(model)
    for layer in layers:
        layer.forward = _Packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Packed:
    """The forward pass of one layer."""

    __slots__ = ("calls", "layer", "weight")

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.calls = layer, 0
        self.weight: Tensor | None = None

    def __call__(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or input.dtype != self.layer.weight.dtype:
            return nn.Linear.forward(self.layer, input)
        if self.weight is None:
            self.calls += 1
            if self.calls <= _PLAIN_CALLS:
                return nn.Linear.forward(self.layer, input)
            rows = input.numel() // input.shape[-1]
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.layer.weight.detach(), rows)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.layer.bias, "none", [], "")


def _layers(model: nn.Module) -> list[nn.Linear]:
    """Layers to pack; none if packing would not help or not fit, or if the model is compiled."""
    if any(m._compiled_call_impl is not None for m in model.modules()):
        return []
    layers = [m for m in model.modules() if type(m) is nn.Linear and _may(m)]
    size = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    # the machine's total memory, not the free memory: the same run must give the same bits
    limit = (memory_bytes() or 0) * _SHARE_OF_MEMORY / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return layers if size <= limit else []


def _may(layer: nn.Linear) -> bool:
    weight: Any = layer.weight
    plain = type(weight) in (Tensor, nn.Parameter) and "forward" not in vars(layer)
    return plain and weight.device.type == "cpu" and weight.numel() >= _LEAST and _is_fast(weight.dtype)


def _is_fast(dtype: torch.dtype) -> bool:
    # torch's own compiler emits these operations; a build without oneDNN lacks them
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
