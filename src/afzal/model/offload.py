"""Weights that are kept in host memory and copied to a device while they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from afzal.model.load import frozen_copy

HOST = torch.device("cpu")


def on_host(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in host memory, pinned if ``device`` is a GPU, so that the GPU can copy it while it computes."""
    copied = tensor.detach().to(HOST, copy=True)
    return copied.pin_memory() if device.type == "cuda" else copied


def move_home(model: Any, device: torch.device) -> Any:
    """Move the model's weights, not its buffers, to host memory, from where :func:`visiting` copies them to
    ``device``."""
    for p in model.parameters():
        p.data = on_host(p, device)
    return model


def host_copy(model: Any, device: torch.device) -> Any:
    """A frozen copy of a model with its weights in host memory; nothing is copied on the device."""
    return move_home(frozen_copy(model, HOST), device)


@contextmanager
def visiting(parameters: Iterable[nn.Parameter], device: torch.device) -> Iterator[None]:
    """Copy the weights to the device for the duration of the block; changes made there are lost."""
    homes = [(p, p.data) for p in parameters]
    try:
        for p, home in homes:
            p.data = home.to(device, copy=True, non_blocking=True)
        yield
    finally:
        for p, home in homes:
            p.data = home
