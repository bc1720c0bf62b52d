"""Communication between ranks, the processes that train one model together; ``torchrun`` starts them.

With tensor parallelism, T successive ranks compute the same items together, each its columns or rows of every matrix.
Only the first rank of such a group contributes to sums over items; there are ``world() / T`` *data ranks*.

Ranks exchange JSON or plain tensors through the host, never pickle. In one process everything here does nothing, and no
process group is created.
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
from afzal.runs import torchrun
from afzal.runs.torchrun import global_rank, world_size

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

# a rank that waits longer than this for the others gives up, so that none hangs forever after another has died
TIMEOUT = timedelta(minutes=30)
_PARTING = timedelta(seconds=10)  # after a failure, which may have hit the others too
_tensor = 1  # ranks that compute the same items together
_meetings = 0  # trainings in this process that joined a group


def world() -> int:
    """Number of joined ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if world() > 1 else 0


def tensor() -> int:
    """T, the number of successive ranks that compute the same items together."""
    return _tensor if world() > 1 else 1


def data_rank() -> int:
    """The share of the items that this rank computes, from 0."""
    return rank() // tensor()


def data_world() -> int:
    """The number of shares that an update's items are divided into."""
    return world() // tensor()


def leads_tensor_group() -> bool:
    """Whether this rank contributes its group's items to sums."""
    return rank() % tensor() == 0


@cache
def mesh(device: str) -> DeviceMesh:
    """All ranks along the axis ``shard``; under tensor parallelism as ``[data_world, T]``, ``shard`` and ``tensor``."""
    from torch.distributed.device_mesh import init_device_mesh

    if tensor() == 1:
        return flat_mesh(device)
    return init_device_mesh(device, (data_world(), tensor()), mesh_dim_names=("shard", "tensor"))


@cache
def flat_mesh(device: str) -> DeviceMesh:
    """All ranks along the axis ``shard``."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (world(),), mesh_dim_names=("shard",))


def leads() -> bool:
    """Whether this is rank 0, the only one that writes files."""
    return rank() == 0


class ElsewhereError(AfzalError):
    """Another rank failed and reports the error itself."""

    told = True


@contextmanager
def joined(device: torch.device, tensor_parallel: int = 1) -> Iterator[None]:
    """Join the ranks that were started together into one group inside the block: gloo for the host, NCCL for CUDA.

    Args:
        tensor_parallel: number of successive ranks that compute the same items together; divides the number of ranks.
    """
    global _tensor
    if world_size() < 2 or world() > 1:
        yield
        return
    assert world_size() % tensor_parallel == 0
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
        flat_mesh.cache_clear()
        _part(store, size, wait)
        dist.destroy_process_group()


def _meeting() -> tuple[Store, int, int]:
    """The store through which the ranks find each other, this rank, and the number of ranks.

    Trainings of one process share a store, each with its own prefix. A store may still hold entries, such as addresses:
    from before a restart, if the launcher keeps the store, or from the previous training, since rank 0 releases its
    store only when the garbage collector has freed everything of that training.
    """
    global _meetings
    _meetings += 1
    store, rank, size = _store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    start = torchrun.restarts() if torchrun.reuses_store() else 0
    return PrefixStore(f"afzal/{start}/{_meetings}", store), rank, size


@cache
def _store(address: str, port: str) -> tuple[Store, int, int]:
    del address, port  # the rendezvous reads them from the environment too
    return next(rendezvous("env://", timeout=TIMEOUT))


def _part(store: Store, size: int, wait: timedelta) -> None:
    """Leave once all ranks have finished: a last message may still be on its way from one to another."""
    for key in ("done", "gone"):  # twice, since rank 0 keeps the store
        with suppress(RuntimeError):  # a dead rank never arrives
            if store.add(key, 1) == size:
                store.set(f"{key}/all", "1")
            elif key == "done" or rank() == 0:
                store.wait([f"{key}/all"], wait)


def own_device(name: str) -> str:
    """The device setting for this rank: each gets the GPU of its local number on the machine.

    Raises:
        AfzalError: a single GPU is named, which not all ranks can use, or the machine has too few.
    """
    if world_size() < 2 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise AfzalError(f"device={name} cannot be the device of {world_size()} ranks", remedy="device=auto")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if not count and name == "auto":
        return "cpu"
    if local >= count:
        what = f"rank {global_rank()} would need GPU {local}, and this machine has {count}"
        raise AfzalError(what, remedy=f"torchrun --nproc-per-node {count or 1}, or device=cpu")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def gather(value: T) -> list[T]:
    """The values of all ranks, in rank order: any JSON value, floats bit for bit."""
    if world() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    return [json.loads(part.numpy().tobytes()) for part in _gather_rows(torch.from_numpy(data.copy()))]


def gather_data(value: T) -> list[T]:
    """Like :func:`gather`, for the data ranks, so values about items appear once."""
    return gather(value)[:: tensor()]


def gather_tensors(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of all data ranks, in rank order: the same names and dtypes everywhere, one axis, any lengths."""
    if world() == 1:
        return [dict(tensors)]
    columns = {name: _gather_rows(t.detach().cpu().contiguous()) for name, t in tensors.items()}
    speakers = range(0, world(), tensor())
    return [{name: columns[name][r].to(t.device) for name, t in tensors.items()} for r in speakers]


def _gather_rows(local_rows: Tensor) -> list[Tensor]:
    """The rows ``[n]`` of every rank; n may differ."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(lengths, torch.tensor([len(local_rows)]))
    longest = max(int(n) for n in lengths)
    padded = torch.cat([local_rows, local_rows.new_zeros(longest - len(local_rows))])
    rows = [torch.empty_like(padded) for _ in range(world())]
    if longest:
        dist.all_gather(rows, padded)
    return [part[: int(n)] for part, n in zip(rows, lengths, strict=True)]


def total(values: Sequence[float]) -> list[float]:
    """Sums over the data ranks, added in rank order, so that all ranks get the same bits."""
    return list(values) if world() == 1 else [sum(column) for column in zip(*gather_data(list(values)), strict=True)]


def summed(tallies: Tally) -> Tally:
    """Sums and counts over all data ranks."""
    if world() == 1:
        return tallies
    sums: dict[str, list[float]] = {}
    for theirs in gather_data({name: [float(s), float(n)] for name, (s, n) in tallies.items()}):
        for name, (s, n) in theirs.items():
            old = sums.get(name, [0.0, 0.0])
            sums[name] = [old[0] + s, old[1] + n]
    as_tensor = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return {name: (as_tensor(s), as_tensor(n)) for name, (s, n) in sums.items()}


def wait() -> None:
    """Wait until every rank has arrived here."""
    gather(None)


def agreed(value: T) -> T:
    """Rank 0's value, on every rank."""
    return gather(value)[0]


def first(value: T | None) -> T | None:
    """The value of the lowest rank that has one, None if none has; so a stop request on one rank stops all."""
    return next((theirs for theirs in gather(value) if theirs is not None), None)


def same(name: str, value: Any) -> None:
    """Make sure that every rank has the same value.

    Raises:
        AfzalError: on all ranks, if one differs.
    """
    values = gather(value)
    if differing := [r for r, theirs in enumerate(values) if theirs != values[0]]:
        raise AfzalError(
            f"rank {differing[0]} has another {name} than rank 0",
            why=f"{values[differing[0]]!r} instead of {values[0]!r}",
            remedy="give every rank the same files, settings and versions",
        )


def led(work: Callable[[], None]) -> None:
    """Have rank 0 do something while the others wait. A failure there is raised on all ranks.

    Raises:
        AfzalError: rank 0 failed.
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
    message = agreed(None if fault is None else str(fault) or type(fault).__name__)
    if fault is not None:
        raise fault
    if message is not None:
        raise ElsewhereError(f"rank 0 failed: {message}")


def by_all(work: Callable[[], T], caught: type[Exception] = Exception) -> list[T]:
    """The results of ``work`` on all ranks, which must be JSON values. A failure on one rank is raised on all.

    Args:
        caught: failures to exchange; another one ends its own rank, and the others as they wait for it.

    Raises:
        AfzalError: the error of this rank, or else of the first rank that failed.
    """
    if world() == 1:
        return [work()]
    fault: Exception | None = None
    value: Any = None
    try:
        value = work()
    except caught as error:
        fault = error
    answers: list[Any] = gather([value, fault and _fields(fault)])
    if fault is not None:
        raise fault
    for failed_rank, (_, failure) in enumerate(answers):
        if failure is not None:
            what, where, why, remedy = failure
            raise AfzalError(f"rank {failed_rank}: {what}", where=where, why=why, remedy=remedy)
    return [value for value, _ in answers]


def _fields(error: Exception) -> list[str]:
    if isinstance(error, AfzalError):
        return [error.what, error.where, error.why, error.remedy]
    return [f"{type(error).__name__}: {error}", "", "", ""]


def portion(n: int) -> range:
    """This rank's contiguous share of ``n`` things; shares differ by at most one."""
    return range(n * rank() // world(), n * (rank() + 1) // world())


def data_portion(n: int) -> range:
    """The contiguous share of ``n`` things of this rank's group, which computes them together."""
    return range(n * data_rank() // data_world(), n * (data_rank() + 1) // data_world())


def add_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients of unsharded parameters over the ranks; a missing gradient counts as 0."""
    if world() == 1:
        return
    for p in parameters:
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = torch.stack([part["grad"] for part in gather_tensors({"grad": gradient.flatten()})]).sum(0).view_as(p)


def divide(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Indices of the costs in ``shares`` lists of nearly equal sums: the largest first, each to the list with the
    smallest sum.

    A pure function, so every rank knows every other's share. At most 4/3 - 1/(3 shares) of the best possible
    largest sum (Graham 1969).
    """
    burden, members = [0.0] * shares, [[] for _ in range(shares)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(shares), key=lambda s: (burden[s], len(members[s]), s))
        burden[least] += costs[i]
        members[least].append(i)
    return [sorted(indices) for indices in members]
