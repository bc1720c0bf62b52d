"""Tensors that lie in pieces on all ranks (PyTorch's DTensor): made whole, and measured. Plain ones pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from afzal.train import ranks
from afzal.train.boxes import writes

_SMALL = 1 << 20  # bytes; smaller tensors stay in memory


def full(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors from pieces by name, one after the other, on the CPU of rank 0; nothing on the others.

    All ranks must go through all of them. Tensors that are no pieces stay as they are.
    """
    for name, t in tensors.items():
        value = t.detach()
        if hasattr(value, "full_tensor"):
            value = _full(value).cpu()
        if ranks.leads():
            yield name, value


def laid_down(t: Tensor, folder: Path) -> Tensor:
    """The tensor in a file of the folder, mapped into memory: the system may write its pages out and take them back.

    The file has no name, so that nothing of it is left when the tensor is gone, or the process.
    """
    if t.numel() * t.element_size() < _SMALL:
        return t.clone()
    with NamedTemporaryFile(dir=folder) as file:
        made = torch.from_file(file.name, shared=True, size=t.numel(), dtype=t.dtype).view(t.shape)
    return made.copy_(t)


def _full(value: Any) -> Tensor:
    """A tensor made whole along one axis of ranks after the other: first over those that cut it last."""
    from torch.distributed.tensor import Replicate

    for axis in range(value.device_mesh.ndim):
        done = [Replicate() if at <= axis else p for at, p in enumerate(value.placements)]
        value = value.redistribute(placements=done)
    return value.to_local()


def local(t: Tensor) -> Tensor:
    """This rank's piece, which shares its memory with the whole."""
    return t.to_local() if hasattr(t, "to_local") else t  # pyright: ignore[reportAttributeAccessIssue]


def like(t: Any, number: Tensor) -> Tensor:
    """A tensor cut as ``t`` is, each of whose numbers is the same one; it takes the memory of one."""
    piece = number.expand(local(t.detach()).shape)
    if not hasattr(t, "device_mesh"):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(piece, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())


def alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups that one step of an optimiser can take: of a group all are cut over the same axes of ranks,
    or none is."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(getattr(getattr(p, "device_mesh", None), "mesh_dim_names", None), []).append(p)
    return list(groups.values())


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients so that their norm over all ranks is at most ``max_norm``; returns the norm before."""
    parameters = list(parameters)
    if ranks.world() == 1:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.tensor(norm_of(grads))
    scale = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    for g in grads:
        local(g).mul_(scale)
    return norm


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of everything that these tensors hold on all ranks."""
    mine = [t for t in tensors if writes(t)]  # what several ranks hold alike counts once
    squares = [torch.linalg.vector_norm(local(t)).double().square().to(mine[0].device) for t in mine]
    return sum(ranks.gather(float(torch.stack(squares).sum()) if squares else 0.0)) ** 0.5
