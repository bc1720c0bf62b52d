"""Optimiser, learning-rate schedule, and the optimiser's state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name; tied weights once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    name: Literal["adamw", "rmsprop", "sgd"] = "adamw",
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (fused), RMSprop, the DPO paper's choice, or gradient descent without momentum.

    The learning rate is set at every step from the schedule.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, weight_decay=weight_decay, fused=True)
    if name == "rmsprop":  # tensor by tensor: all at once, it holds a copy of all its state for the square roots
        return torch.optim.RMSprop(parameters, lr=0.0, alpha=0.99, eps=eps, weight_decay=weight_decay, foreach=False)
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then constant, or linear or cosine decay to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant" or steps <= warmup_steps:
        return peak
    done = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of warm-up: a share of all steps when below 1, else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as ``{"<parameter>|<slot>": tensor}``."""
    state = optimizer.state
    return {f"{name}|{slot}": v for name, p in parameters.items() if p in state for slot, v in state[p].items()}


def optimizer_slots(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Make the optimiser's state anew with room for what :func:`optimizer_tensors` gave, by the same names.

    Args:
        shapes: the whole shape of each; a slot with its parameter's shape is on its device, and in the same pieces.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    found = {}
    for key, shape in shapes.items():
        name, _, slot = key.rpartition("|")
        parameter = parameters[name]
        device = parameter.device if fused else "cpu"  # of the count of steps, which a fused kernel wants beside it
        alike = slot != "step" and shape == tuple(parameter.shape)
        found[key] = torch.zeros_like(parameter) if alike else torch.zeros(shape, device=device)
        optimizer.state.setdefault(parameter, {})[slot] = found[key]
    return found
