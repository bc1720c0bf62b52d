"""Let rank 0 run something longer than a training, and call the other ranks for shared work.

Rank 0 alone reads the folder, decides what is due and writes files, so ranks need not agree on any of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from afzal.errors import AfzalError
from afzal.train import ranks

# between two calls rank 0 may wait for a server or a slow function; if it dies, its connections close and end the wait
_FOREVER = timedelta(days=365)
_END = ""


class Coordinator:
    """Lets rank 0 call functions on all ranks of a joined group; in one process, it calls them directly.

    Args:
        functions: the callable functions, by name. Each is called with ``local``, a value of the local rank, and with
            keyword arguments from rank 0, which must be JSON values.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = dict(functions)
        self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER) if ranks.world() > 1 else None
        self._others_wait = self._group is not None

    def run_parts(self, name: str, local: Any, **arguments: Any) -> list[Any]:
        """Have every rank do its part of the work; return all results in rank order.

        Raises:
            AfzalError: on all ranks, if one failed.
        """
        with self._calling(name, arguments, collective=False):
            return self._part(name, local, arguments)

    def run_collective(self, name: str, local: Any, **arguments: Any) -> Any:
        """Have all ranks do work in which they communicate with each other, such as training."""
        with self._calling(name, arguments, collective=True):
            return self._functions[name](local, **arguments)

    def serve(self, local: Any) -> None:
        """On every other rank: do what rank 0 calls for, until it ends the calls."""
        while True:
            name, arguments, collective = self._receive()
            if name == _END:
                return
            if collective:
                self._functions[name](local, **arguments)
            else:
                self._part(name, local, arguments)

    def stop(self) -> None:
        """End the wait of the other ranks in :meth:`serve`."""
        self._broadcast(_END, {}, collective=False)

    def _part(self, name: str, local: Any, arguments: Mapping[str, Any]) -> list[Any]:
        # the ranks of a tensor-parallel group may wait for each other inside: if one alone fails, for example because
        # its memory is full, it must end so that the wait does
        caught = AfzalError if ranks.tensor() > 1 else Exception
        return ranks.by_all(lambda: self._functions[name](local, **arguments), caught)

    @contextmanager
    def _calling(self, name: str, arguments: Mapping[str, Any], *, collective: bool) -> Iterator[None]:
        self._broadcast(name, arguments, collective=collective)
        try:
            yield
        except BaseException:
            self._others_wait = False  # a failure here is a failure there, so nobody waits for a call
            raise

    def _broadcast(self, name: str, arguments: Mapping[str, Any], *, collective: bool) -> None:
        if self._others_wait:
            data = torch.frombuffer(bytearray(json.dumps([name, arguments, collective]).encode()), dtype=torch.uint8)
            dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
            dist.broadcast(data, 0, group=self._group)

    def _receive(self) -> tuple[str, dict[str, Any], bool]:
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        name, arguments, collective = json.loads(data.numpy().tobytes())
        return name, arguments, collective
