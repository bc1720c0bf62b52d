"""Create the optimiser, and save and restore its state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name; tied weights appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    name: Literal["adamw", "rmsprop", "sgd"] = "adamw",
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Create AdamW (fused), RMSprop (the DPO paper's choice) or SGD without momentum.

    The loop sets the learning rate at every step.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, weight_decay=weight_decay, fused=True)
    if name == "rmsprop":  # tensor by tensor: foreach would copy all its state for the square roots
        return torch.optim.RMSprop(parameters, lr=0.0, alpha=0.99, eps=eps, weight_decay=weight_decay, foreach=False)
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as ``{"<parameter>|<slot>": tensor}``."""
    state = optimizer.state
    return {f"{name}|{slot}": v for name, p in parameters.items() if p in state for slot, v in state[p].items()}


def optimizer_slots(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Allocate new optimiser state for the tensors of :func:`optimizer_tensors`, and return it by the same names.

    Args:
        shapes: full shapes; a slot with its parameter's shape has the same device and sharding.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    slots = {}
    for key, shape in shapes.items():
        name, _, slot = key.rpartition("|")
        parameter = parameters[name]
        # the step count, which a fused kernel needs on the parameter's device
        device = parameter.device if fused else "cpu"
        matches_parameter = slot != "step" and shape == tuple(parameter.shape)
        slots[key] = torch.zeros_like(parameter) if matches_parameter else torch.zeros(shape, device=device)
        optimizer.state.setdefault(parameter, {})[slot] = slots[key]
    return slots
