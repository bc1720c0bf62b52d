"""Communication between ranks, the processes that train one model together; ``torchrun`` starts them.

With tensor parallelism, T successive ranks compute the same items together, each its columns or rows of every matrix.
Only the first rank of such a group contributes to sums over items; there are ``world() / T`` *data ranks*.

Ranks exchange JSON or plain tensors through the host, never pickle. In one process everything here does nothing, and no
process group is created.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
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
from afzal.train.failures import Board, Failure, board_at, failure_of, is_request
from afzal.train.signals import signals_ignored

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

# a rank that waits longer than this for the others gives up, so that none hangs forever after another has died
TIMEOUT = timedelta(minutes=30)
TELLING = timedelta(seconds=20)  # in which a rank that fails before it joined tells the others, which may still start
_POLL_SECONDS, _GONE_SECONDS = 0.02, 10.0
_tensor = 1  # ranks that compute the same items together
_board: Board | None = None  # of the joined group
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


@contextmanager
def joined(device: torch.device, tensor_parallel: int = 1) -> Iterator[None]:
    """Join the ranks that were started together into one group inside the block: gloo for the host, NCCL for CUDA.

    What ends one rank inside the block ends all of them (:mod:`afzal.train.failures`).

    Args:
        tensor_parallel: number of successive ranks that compute the same items together; divides the number of ranks.

    Raises:
        AfzalError: an error of another rank, which reports it.
        KeyboardInterrupt, Terminated: a signal has ended another rank.
    """
    global _tensor, _board
    if world_size() < 2 or world() > 1:
        yield
        return
    assert world_size() % tensor_parallel == 0
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, prefix, rank, size = _meeting()
    _board = board = board_at(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], prefix, rank, size)
    try:
        _all_at(store, "here", size, board, TIMEOUT)  # also ends if one fails before it is here
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        _tensor = tensor_parallel
        if tensor_parallel > 1:
            mesh(device.type)  # its groups meet through the store, so here, where all ranks are
        yield
        _part(store, size, board)
    except BaseException as error:
        reason = board.cause(error)
        if is_request(reason):
            _part(store, size, board)
            raise
        with signals_ignored():
            board.end(reason)
        if reason is error:
            raise
        raise reason from None
    finally:
        _tensor, _board = 1, None
        mesh.cache_clear()
        flat_mesh.cache_clear()
        if dist.is_initialized():
            dist.destroy_process_group()
        board.close()


def cause(error: BaseException) -> BaseException:
    """The error that this rank ends with because of ``error``: itself, or another rank's if it only follows from that.

    An exchange breaks off if another rank has failed, and launchers then end the others by a signal.
    """
    return error if _board is None else _board.cause(error)


def tell(error: BaseException) -> None:
    """Tell the others that this rank ends before it joined them, so that they do not wait for it.

    If another has failed before, ``error`` is marked as told. The others may come late or never; then this gives up.
    """
    if world_size() < 2 or _meetings:
        return
    with suppress(RuntimeError):
        _, prefix, rank, size = _meeting(TELLING)
        board = board_at(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], prefix, rank, size)
        board.end(error)
        board.close()
        # else the launcher would end them by a signal before they have read why
        board.wait_until_noticed(TELLING.total_seconds())


def _meeting(patience: timedelta = TIMEOUT) -> tuple[Store, str, int, int]:
    """The store through which the ranks find each other and its prefix, this rank, and the number of ranks.

    Trainings of one process share a store, each with its own prefix. A store may still hold entries, such as addresses:
    from before a restart, if the launcher keeps the store, or from the previous training, since rank 0 releases its
    store only when the garbage collector has freed everything of that training.
    """
    global _meetings
    _meetings += 1
    store, rank, size = _store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], patience)
    start = torchrun.restarts() if torchrun.reuses_store() else 0
    prefix = f"afzal/{start}/{_meetings}"
    return PrefixStore(prefix, store), prefix, rank, size


@cache
def _store(address: str, port: str, patience: timedelta) -> tuple[Store, int, int]:
    del address, port  # the rendezvous reads them from the environment too
    return _with_signals(lambda: next(rendezvous("env://", timeout=patience)))


def _with_signals(work: Callable[[], T]) -> T:
    """The result of work that waits for other ranks outside Python, where no signal would be handled meanwhile."""
    results: list[T] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
    if faults:
        raise faults[0]
    return results[0]


def _all_at(store: Store, place: str, size: int, board: Board, patience: timedelta) -> None:
    """Wait until all ranks have come to a place.

    Raises:
        BaseException: one has failed instead.
    """
    deadline = time.monotonic() + patience.total_seconds()
    store.add(place, 1)
    while True:
        if board.known is not None:  # then the store may be gone
            raise board.known.as_error()
        if store.add(place, 0) >= size:
            return
        if time.monotonic() > deadline:
            raise AfzalError(
                f"only {store.add(place, 0)} of {size} ranks have come within {patience}",
                remedy="look at the others' last lines, and start all of them again",
            )
        time.sleep(_POLL_SECONDS)


def _part(store: Store, size: int, board: Board) -> None:
    """Leave once all ranks have finished: a last message may still be on its way from one to another.

    Raises:
        BaseException: one has failed instead.
    """
    _all_at(store, "done", size, board, TIMEOUT)
    board.close()
    store.add("gone", 1)
    deadline = time.monotonic() + _GONE_SECONDS
    while rank() == 0 and store.add("gone", 0) < size and time.monotonic() < deadline:  # rank 0 may keep the store
        time.sleep(_POLL_SECONDS)


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
    by_all(lambda: work() if leads() else None)


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
    answers: list[Any] = gather([value, fault and asdict(failure_of(rank(), fault))])
    if fault is not None:
        raise fault
    for _, failure in answers:
        if failure is not None:
            raise Failure(**failure).as_error()
    return [value for value, _ in answers]


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
