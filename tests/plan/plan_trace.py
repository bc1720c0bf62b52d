"""One update under FSDP2 as seen by rank 0 of many, without the other ranks: the process group is fake.

Collectives of the fake group leave wrong numbers in buffers of the right size, so that bytes can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Traced:
    """Bytes of rank 0: parameters, gradients and optimiser at rest, the fullest moment, and what it received."""

    parameters: int
    gradients: int
    optimiser: int
    peak: int
    gathered: int
    scattered: int


@contextmanager
def fake_group(ranks: int) -> Iterator[None]:
    """A default process group of ``ranks`` in which this process is rank 0 and the others do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class Storages(TorchDispatchMode):
    """Bytes of all live storages that an operation has touched, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            self.note(leaf)
        self.peak = max(self.peak, self.live())
        return out

    def note(self, leaf: Any) -> None:
        local = getattr(leaf, "_local_tensor", leaf)
        if isinstance(local, torch.Tensor) and local.device.type != "meta":
            storage = local.untyped_storage()
            self.seen.setdefault(storage._cdata, StorageWeakRef(storage))

    def live(self) -> int:
        total = 0
        for key, ref in list(self.seen.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is None:
                del self.seen[key]
            else:
                total += storage.nbytes()
        return total


class Traffic(TorchDispatchMode):
    """Bytes that collectives bring from other ranks."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.outside = (ranks - 1) / ranks
        self.gathered = self.scattered = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        largest = max((t.numel() * t.element_size() for t in tensors), default=0)
        if "allgather" in name or "all_gather_into" in name:
            self.gathered += largest * self.outside
        elif "reduce_scatter" in name:
            self.scattered += largest * self.outside
        return func(*args, **(kwargs or {}))


def sharded(model: Any, ranks: int) -> Any:
    """The model cut as ``afzal train`` cuts it: blocks by themselves, embedding and head with the root, bf16 computes,
    what trains stays float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (ranks,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for unit in base.model.layers:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def bytes_of(tensors: Any) -> int:
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


def trace(model: nn.Module, ranks: int, tokens: int) -> Traced:
    """Two updates with AdamW of a causal language model on ``tokens`` tokens; the second one is counted."""
    with fake_group(ranks):
        model = sharded(model, ranks)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, foreach=False)
        ids = torch.ones(1, tokens, dtype=torch.long)
        _update(model, optimizer, ids)
        moving, sizes = Traffic(ranks), Storages()
        for p in [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]:
            sizes.note(p)
        optimizer.zero_grad()
        with moving, sizes:
            model(ids).logits.float().sum().backward()
        gradients = bytes_of(p.grad for p in trained)
        states = [t for s in optimizer.state.values() for t in s.values() if t.dim() > 0]
        sizes_of_state = (bytes_of(model.parameters()), gradients, bytes_of(states), sizes.peak)
        return Traced(*sizes_of_state, round(moving.gathered), round(moving.scattered))


def _update(model: Any, optimizer: Any, ids: torch.Tensor) -> None:
    model(ids).logits.float().sum().backward()
    optimizer.step()
