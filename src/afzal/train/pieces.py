"""Tensors that lie in pieces on all ranks (PyTorch's DTensor): made whole, and measured. Plain ones pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from afzal.train import ranks


def full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from pieces, on the CPU of rank 0 and nowhere else; all ranks must call it. Others stay as is."""
    found = {}
    for name, t in tensors.items():
        value = t.detach()
        if hasattr(value, "full_tensor"):
            value = value.full_tensor().cpu()  # pyright: ignore[reportAttributeAccessIssue]
        if ranks.leads():
            found[name] = value
    return found


def local(t: Tensor) -> Tensor:
    """This rank's piece, which shares its memory with the whole."""
    return t.to_local() if hasattr(t, "to_local") else t  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their norm over all ranks is at most ``max_norm``; returns the norm before."""
    parameters = list(parameters)
    if ranks.world() == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    grads = [p.grad for p in parameters if p.grad is not None]
    mine = [g for g in grads if hasattr(g, "to_local") or ranks.leads()]  # what all have whole counts once
    squares = [torch.linalg.vector_norm(local(g)).double().square().to(grads[0].device) for g in mine]
    norm = torch.tensor(ranks.total([float(torch.stack(squares).sum())])[0] ** 0.5)
    scale = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    for g in grads:
        local(g).mul_(scale)
    return norm
