"""Rank 0 runs something longer than a training, and calls the other ranks for the work that all of them do.

Rank 0 alone reads the folder, decides what is due and writes files, so that ranks need not agree on any of it.
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

# between two calls rank 0 may ask a server or a slow function; if it dies, its connections close, and the wait ends
_FOREVER = timedelta(days=365)
_END = ""


class Calls:
    """Calls of rank 0 to all ranks of a group that has been joined; in one process, calls of functions.

    Args:
        works: what can be called for, by name. A work is called with what its own rank holds, ``own``, and with what
            rank 0 tells, which is anything JSON can say.
    """

    def __init__(self, works: Mapping[str, Callable[..., Any]]) -> None:
        self._works = dict(works)
        self._group: Any = dist.new_group(backend="gloo", timeout=_FOREVER) if ranks.world() > 1 else None
        self._heard_by_others = self._group is not None

    def share(self, name: str, own: Any, **told: Any) -> list[Any]:
        """Have every rank do its part of a work; what each made of it, in their order.

        Raises:
            AfzalError: a rank could not; on all ranks.
        """
        with self._called(name, told, meet=False):
            return self._part(name, own, told)

    def meet(self, name: str, own: Any, **told: Any) -> Any:
        """Have every rank do a work in which they speak to each other, such as a training."""
        with self._called(name, told, meet=True):
            return self._works[name](own, **told)

    def answer(self, own: Any) -> None:
        """Of every other rank: do what rank 0 calls for, until it says that there is no more."""
        while True:
            name, told, meet = self._heard()
            if name == _END:
                return
            if meet:
                self._works[name](own, **told)
            else:
                self._part(name, own, told)

    def end(self) -> None:
        """End the wait of the other ranks in :meth:`answer`."""
        self._tell(_END, {}, meet=False)

    def _part(self, name: str, own: Any, told: Mapping[str, Any]) -> list[Any]:
        return ranks.by_all(lambda: self._works[name](own, **told))

    @contextmanager
    def _called(self, name: str, told: Mapping[str, Any], *, meet: bool) -> Iterator[None]:
        self._tell(name, told, meet=meet)
        try:
            yield
        except BaseException:
            self._heard_by_others = False  # what failed here has failed there, and nobody waits for a call
            raise

    def _tell(self, name: str, told: Mapping[str, Any], *, meet: bool) -> None:
        if self._heard_by_others:
            data = torch.frombuffer(bytearray(json.dumps([name, told, meet]).encode()), dtype=torch.uint8)
            dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
            dist.broadcast(data, 0, group=self._group)

    def _heard(self) -> tuple[str, dict[str, Any], bool]:
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        name, told, meet = json.loads(data.numpy().tobytes())
        return name, told, meet
