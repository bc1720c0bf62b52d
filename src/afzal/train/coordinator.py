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

from afzal.train import ranks

# between two calls rank 0 may wait for a server or a slow function; if it dies, its connections close and end the wait
_FOREVER = timedelta(days=365)
_END = ""


class Calls:
    """Calls of rank 0 to all ranks of a joined group; in one process, plain function calls.

    Args:
        works: the callable functions, by name. Each is called with ``own``, a value of the local rank, and with
            keyword arguments from rank 0, which must be JSON values.
    """

    def __init__(self, works: Mapping[str, Callable[..., Any]]) -> None:
        self._works = dict(works)
        self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER) if ranks.world() > 1 else None
        self._heard_by_others = self._group is not None

    def share(self, name: str, own: Any, **arguments: Any) -> list[Any]:
        """Have every rank do its part of the work; return all results in rank order.

        Raises:
            AfzalError: on all ranks, if one failed.
        """
        with self._called(name, arguments, meet=False):
            return self._part(name, own, arguments)

    def meet(self, name: str, own: Any, **arguments: Any) -> Any:
        """Have all ranks do work in which they communicate with each other, such as training."""
        with self._called(name, arguments, meet=True):
            return self._works[name](own, **arguments)

    def answer(self, own: Any) -> None:
        """On every other rank: do what rank 0 calls for, until it ends the calls."""
        while True:
            name, arguments, meet = self._heard()
            if name == _END:
                return
            if meet:
                self._works[name](own, **arguments)
            else:
                self._part(name, own, arguments)

    def end(self) -> None:
        """End the wait of the other ranks in :meth:`answer`."""
        self._tell(_END, {}, meet=False)

    def _part(self, name: str, own: Any, arguments: Mapping[str, Any]) -> list[Any]:
        return ranks.by_all(lambda: self._works[name](own, **arguments))

    @contextmanager
    def _called(self, name: str, arguments: Mapping[str, Any], *, meet: bool) -> Iterator[None]:
        self._tell(name, arguments, meet=meet)
        try:
            yield
        except BaseException:
            self._heard_by_others = False  # a failure here is a failure there, so nobody waits for a call
            raise

    def _tell(self, name: str, arguments: Mapping[str, Any], *, meet: bool) -> None:
        if self._heard_by_others:
            data = torch.frombuffer(bytearray(json.dumps([name, arguments, meet]).encode()), dtype=torch.uint8)
            dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
            dist.broadcast(data, 0, group=self._group)

    def _heard(self) -> tuple[str, dict[str, Any], bool]:
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        name, arguments, meet = json.loads(data.numpy().tobytes())
        return name, arguments, meet
