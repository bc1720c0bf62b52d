"""Weights that live in the machine's memory and visit a device while they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from afzal.model.load import frozen_copy

HOST = torch.device("cpu")


def on_host(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in the machine's memory; locked there when ``device`` is a GPU, which then copies it while it computes."""
    copied = tensor.detach().to(HOST, copy=True)
    return copied.pin_memory() if device.type == "cuda" else copied


def move_home(model: Any, device: torch.device) -> Any:
    """The model with its weights, not its buffers, in the machine's memory, from where they can visit ``device``."""
    for p in model.parameters():
        p.data = on_host(p, device)
    return model


def host_copy(model: Any, device: torch.device) -> Any:
    """A frozen copy of a model whose weights lie in the machine's memory; on the device nothing is copied."""
    return move_home(frozen_copy(model, HOST), device)


@contextmanager
def visiting(parameters: Iterable[nn.Parameter], device: torch.device) -> Iterator[None]:
    """Copies of the weights on the device as long as the block lasts; what is changed there is lost."""
    homes = [(p, p.data) for p in parameters]
    try:
        for p, home in homes:
            p.data = home.to(device, copy=True, non_blocking=True)
        yield
    finally:
        for p, home in homes:
            p.data = home
