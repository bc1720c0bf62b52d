"""Sharded tensors (PyTorch's DTensor): gather, clip and measure them. Plain tensors pass through unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from afzal.train import ranks
from afzal.train.shard_layout import is_writer

_SMALL = 1 << 20  # bytes; smaller tensors stay in memory


def gather_full(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield full tensors by name, one by one, on the CPU of rank 0; nothing on the other ranks.

    All ranks must iterate over all of them. Tensors that are not sharded pass unchanged.
    """
    for name, t in tensors.items():
        value = t.detach()
        if hasattr(value, "full_tensor"):
            value = _full(value).cpu()
        if ranks.leads():
            yield name, value


def memory_mapped_copy(t: Tensor, folder: Path) -> Tensor:
    """A copy of the tensor in a memory-mapped file in the folder, so that the system can page it out.

    The file has no name, so nothing remains of it when the tensor or the process is gone.
    """
    if t.numel() * t.element_size() < _SMALL:
        return t.clone()
    with NamedTemporaryFile(dir=folder) as file:
        mapped = torch.from_file(file.name, shared=True, size=t.numel(), dtype=t.dtype).view(t.shape)
    return mapped.copy_(t)


def _full(value: Any) -> Tensor:
    """Gather a tensor along one mesh axis at a time, starting with the axis that cut it last."""
    from torch.distributed.tensor import Replicate

    for axis in range(value.device_mesh.ndim):
        placements = [Replicate() if dim <= axis else p for dim, p in enumerate(value.placements)]
        value = value.redistribute(placements=placements)
    return value.to_local()


def local(t: Tensor) -> Tensor:
    """This rank's shard, which shares memory with the tensor."""
    return t.to_local() if hasattr(t, "to_local") else t  # pyright: ignore[reportAttributeAccessIssue]


def filled_like(t: Any, number: Tensor) -> Tensor:
    """A tensor sharded like ``t`` and filled with one number; it takes the memory of that number."""
    piece = number.expand(local(t.detach()).shape)
    if not hasattr(t, "device_mesh"):
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(piece, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride())


def group_by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups that one optimiser step can take together: all of a group are sharded over the same mesh
    axes, or none is."""
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
    """The Euclidean norm of these tensors over all ranks."""
    owned = [t for t in tensors if is_writer(t)]  # a part that several ranks hold counts once
    squares = [torch.linalg.vector_norm(local(t)).double().square().to(owned[0].device) for t in owned]
    return sum(ranks.gather(float(torch.stack(squares).sum()) if squares else 0.0)) ** 0.5
