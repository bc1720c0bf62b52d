"""Several processes, called ranks, that train one model together; ``torchrun`` starts them.

With tensor parallelism T successive ranks compute the same items together, each its columns or rows of every matrix.
Of such a group the first speaks for all in sums over items; there are ``world() / T`` *data ranks*.

Ranks exchange JSON or plain tensors through the host, never pickle. In one process everything here does nothing, and no
process group is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from afzal.errors import AfzalError
from afzal.objectives.metrics import Tally
from afzal.runs import launched
from afzal.runs.launched import number, processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

# a rank that waits longer than this for the others gives up, so that none hangs for ever when one has died
TIMEOUT = timedelta(minutes=30)
_PARTING = timedelta(seconds=10)  # after a failure, which may be the others' too
_tensor = 1  # ranks that compute the same items together
_meetings = 0  # trainings of this process that joined others


def world() -> int:
    """Number of ranks that are joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if world() > 1 else 0


def tensor() -> int:
    """T, the number of successive ranks that compute the same items together."""
    return _tensor if world() > 1 else 1


def data_rank() -> int:
    """Which share of the items this rank computes, from 0."""
    return rank() // tensor()


def data_world() -> int:
    """In how many shares the items of an update are divided."""
    return world() // tensor()


def speaks() -> bool:
    """Whether this rank is the one of its group whose word on items counts."""
    return rank() % tensor() == 0


@cache
def mesh(device: str) -> DeviceMesh:
    """All ranks along the axis ``shard``; under tensor parallelism as ``[data_world, T]``, ``shard`` and ``tensor``."""
    from torch.distributed.device_mesh import init_device_mesh

    if tensor() == 1:
        return init_device_mesh(device, (world(),), mesh_dim_names=("shard",))
    return init_device_mesh(device, (data_world(), tensor()), mesh_dim_names=("shard", "tensor"))


def leads() -> bool:
    """Whether this is rank 0, the only one that writes files."""
    return rank() == 0


class ElsewhereError(AfzalError):
    """Another rank failed, and says so itself."""

    told = True


@contextmanager
def joined(device: torch.device, tensor_parallel: int = 1) -> Iterator[None]:
    """Inside the block the ranks that were started together are one group: gloo for the host, NCCL for CUDA.

    Args:
        tensor_parallel: successive ranks that compute the same items together; divides their number.
    """
    global _tensor
    if processes() < 2 or world() > 1:
        yield
        return
    assert processes() % tensor_parallel == 0
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = _meeting()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    wait = TIMEOUT
    _tensor = tensor_parallel
    try:
        yield
    except BaseException:
        wait = _PARTING
        raise
    finally:
        _tensor = 1
        mesh.cache_clear()
        _part(store, size, wait)
        dist.destroy_process_group()


def _meeting() -> tuple[Store, int, int]:
    """Where the ranks find each other, this rank, and how many they are.

    Trainings of one process share a store, in which each has a part of its own. A store may hold what the ranks wrote
    before, such as where to reach them: those before a restart, where the launcher keeps it, and those of the training
    before, since rank 0 lets go of its store only when the collector has found all that is left of a training.
    """
    global _meetings
    _meetings += 1
    store, rank, size = _store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    start = launched.restarts() if launched.keeps_store() else 0
    return PrefixStore(f"afzal/{start}/{_meetings}", store), rank, size


@cache
def _store(address: str, port: str) -> tuple[Store, int, int]:
    del address, port  # by which the rendezvous finds it too
    return next(rendezvous("env://", timeout=TIMEOUT))


def _part(store: Store, size: int, wait: timedelta) -> None:
    """Leave when all have come to their end: the last word of one may still be on its way to another."""
    for key in ("done", "gone"):  # twice, since the first rank keeps the store
        with suppress(RuntimeError):  # a rank that has died will not come
            if store.add(key, 1) == size:
                store.set(f"{key}/all", "1")
            elif key == "done" or rank() == 0:
                store.wait([f"{key}/all"], wait)


def own_device(name: str) -> str:
    """The device setting as it is meant for this rank: each has the GPU of its number on the machine.

    Raises:
        AfzalError: one GPU is named, which cannot be every rank's.
    """
    if processes() < 2 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise AfzalError(f"device={name} cannot be the device of {processes()} ranks", remedy="device=auto")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if not count and name == "auto":
        return "cpu"
    if local >= count:
        what = f"rank {number()} would need GPU {local}, and this machine has {count}"
        raise AfzalError(what, remedy=f"torchrun --nproc-per-node {count or 1}, or device=cpu")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def gather(value: T) -> list[T]:
    """What every rank says, in their order: anything JSON can say, floats bit for bit."""
    if world() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    return [json.loads(part.numpy().tobytes()) for part in _gather_rows(torch.from_numpy(data.copy()))]


def gather_data(value: T) -> list[T]:
    """As :func:`gather`, of the data ranks: everything that is said of items is there once."""
    return gather(value)[:: tensor()]


def gather_tensors(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every data rank's tensors, in their order: the same names and dtypes everywhere, one axis, any lengths."""
    if world() == 1:
        return [dict(tensors)]
    columns = {name: _gather_rows(t.detach().cpu().contiguous()) for name, t in tensors.items()}
    said = range(0, world(), tensor())
    return [{name: columns[name][r].to(t.device) for name, t in tensors.items()} for r in said]


def _gather_rows(mine: Tensor) -> list[Tensor]:
    """``[n]`` of every rank, n as it is there."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(lengths, torch.tensor([len(mine)]))
    most = max(int(n) for n in lengths)
    padded = torch.cat([mine, mine.new_zeros(most - len(mine))])
    found = [torch.empty_like(padded) for _ in range(world())]
    if most:
        dist.all_gather(found, padded)
    return [part[: int(n)] for part, n in zip(found, lengths, strict=True)]


def total(values: Sequence[float]) -> list[float]:
    """Sums over the data ranks, added in their order, so that all have the same bits."""
    return list(values) if world() == 1 else [sum(column) for column in zip(*gather_data(list(values)), strict=True)]


def summed(tallies: Tally) -> Tally:
    """Sums and counts over all data ranks."""
    if world() == 1:
        return tallies
    found: dict[str, list[float]] = {}
    for theirs in gather_data({name: [float(s), float(n)] for name, (s, n) in tallies.items()}):
        for name, (s, n) in theirs.items():
            old = found.get(name, [0.0, 0.0])
            found[name] = [old[0] + s, old[1] + n]
    as_tensor = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return {name: (as_tensor(s), as_tensor(n)) for name, (s, n) in found.items()}


def wait() -> None:
    """Until every rank has come here."""
    gather(None)


def agreed(value: T) -> T:
    """Rank 0's value, on every rank."""
    return gather(value)[0]


def first(value: T | None) -> T | None:
    """The value of the lowest rank that has one, None if none has: so a request to stop one rank stops all."""
    return next((said for said in gather(value) if said is not None), None)


def same(name: str, value: Any) -> None:
    """Make sure that every rank has the same value.

    Raises:
        AfzalError: one has another; on all ranks.
    """
    said = gather(value)
    if other := [r for r, theirs in enumerate(said) if theirs != said[0]]:
        raise AfzalError(
            f"rank {other[0]} has another {name} than rank 0",
            why=f"{said[other[0]]!r} instead of {said[0]!r}",
            remedy="give every rank the same files, settings and versions",
        )


def led(work: Callable[[], None]) -> None:
    """Have rank 0 do something while the others wait. What fails there fails everywhere.

    Raises:
        AfzalError: rank 0 could not.
    """
    if world() == 1:
        work()
        return
    fault: Exception | None = None
    if leads():
        try:
            work()
        except Exception as error:
            fault = error
    said = agreed(None if fault is None else str(fault) or type(fault).__name__)
    if fault is not None:
        raise fault
    if said is not None:
        raise ElsewhereError(f"rank 0 failed: {said}")


def by_all(work: Callable[[], T]) -> list[T]:
    """What ``work`` gives on every rank, anything JSON can say. What fails on one rank fails on all.

    Raises:
        AfzalError: on this rank, or else on the first where one was.
    """
    if world() == 1:
        return [work()]
    fault: Exception | None = None
    value: Any = None
    try:
        value = work()
    except Exception as error:
        fault = error
    told: list[Any] = gather([value, fault and _fields(fault)])
    if fault is not None:
        raise fault
    for one, (_, said) in enumerate(told):
        if said is not None:
            what, where, why, remedy = said
            raise AfzalError(f"rank {one}: {what}", where=where, why=why, remedy=remedy)
    return [value for value, _ in told]


def _fields(error: Exception) -> list[str]:
    if isinstance(error, AfzalError):
        return [error.what, error.where, error.why, error.remedy]
    return [f"{type(error).__name__}: {error}", "", "", ""]


def portion(n: int) -> range:
    """Which of ``n`` things in a row this rank has to do, where every rank has as many, or one more."""
    return range(n * rank() // world(), n * (rank() + 1) // world())


def add_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of parameters that every rank has whole; one without a gradient counts as 0."""
    if world() == 1:
        return
    for p in parameters:
        mine = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = torch.stack([part["grad"] for part in gather_tensors({"grad": mine.flatten()})]).sum(0).view_as(p)


def divide(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Indices of the costs in ``shares`` lists of nearly equal sums: the largest first, each to the least burdened.

    A pure function, so that every rank knows every other's share. At most 4/3 - 1/(3 shares) of the best possible
    largest sum (Graham 1969).
    """
    burden, members = [0.0] * shares, [[] for _ in range(shares)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(shares), key=lambda s: (burden[s], len(members[s]), s))
        burden[least] += costs[i]
        members[least].append(i)
    return [sorted(found) for found in members]
