"""What ends one rank ends all of them, and is said once.

A rank that fails writes why to the store through which the ranks met, and ends once the others have read it. Their
exchange breaks off at that moment, and they know whose failure ended it. No exchange is needed for that, which all
would have to make at the same place.

A rank that computes, or waits for something else than the others, notices nothing. Each has a thread that looks at the
store. If its rank goes on after another has failed, the thread sends it a signal, and in the end ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore, Store

from afzal.errors import AfzalError, Terminated, signal_of

_KEY, _SEEN = "failure", "failure/seen"
_LOOK_SECONDS, _POLL_SECONDS = 0.25, 0.02
_BREAK_SECONDS = 1.0  # in which an exchange breaks off after another rank has failed
GRACE_SECONDS = 10.0  # in which a rank ends after a signal
_LAST_SECONDS = 0.1  # in which those who have noticed end their questions to the store
_NOTICE_SECONDS = 3.0  # in which all notice a failure
_PATIENCE_SECONDS = 30.0  # of one question to the store
_LOOK_THERE = (
    "look at its last lines and exit code (killed, out of memory, a lost connection?), then continue with --resume; "
    "torchrun --max-restarts N restarts the ranks by itself"
)


class ElsewhereError(AfzalError):
    """Another rank failed and reports the error itself."""

    told = True


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank ended: the parts of its error, or the name of the signal that ended it.

    Attributes:
        is_told: whether that rank prints the error itself.
    """

    rank: int
    what: str
    where: str = ""
    why: str = ""
    remedy: str = ""
    signal: str = ""
    is_told: bool = True

    def as_error(self) -> BaseException:
        """The error of the other ranks."""
        if self.signal:
            return KeyboardInterrupt() if self.signal == "SIGINT" else Terminated(self.signal)
        error = ElsewhereError if self.is_told else AfzalError
        return error(f"rank {self.rank} failed: {self.what}", where=self.where, why=self.why, remedy=self.remedy)

    @property
    def exit_code(self) -> int:
        """The exit code of a rank that this failure ends."""
        return 128 + signal.Signals[self.signal] if self.signal else 2


def failure_of(rank: int, error: BaseException) -> Failure:
    """The failure of a rank that ends with this error."""
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        return Failure(rank, "stopped by a signal", signal=signal_of(error))
    if isinstance(error, AfzalError):
        return Failure(rank, error.what, error.where, error.why, error.remedy)
    return Failure(rank, f"{type(error).__name__}: {error}")


def is_broken_exchange(error: BaseException) -> bool:
    """Whether an exchange between ranks ended because one of them is gone or silent."""
    words = ("gloo/", "NCCL", "ncclUnhandledCudaError")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


class Board:
    """Where the ranks of a group learn of each other's failures, until :meth:`close`.

    Args:
        store: a connection of its own, since a wait on a shared one would block every other question.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._known: Failure | None = None
        self._ends = False  # this rank
        self._noticed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    @property
    def known(self) -> Failure | None:
        """The first failure of any rank, as far as this rank has seen."""
        return self._known

    def look(self) -> Failure | None:
        """The first failure of any rank, as the store has it now."""
        if self._known is None:
            with suppress(RuntimeError):  # the store has ended with rank 0
                self._read()
        return self._known

    def cause(self, error: BaseException) -> BaseException:
        """The error that a rank ends with because of ``error``: itself, or another rank's if it only follows from that.

        A signal follows from another's failure if it comes after it: launchers end the ranks that are left.
        """
        if not isinstance(error, (KeyboardInterrupt, Terminated)) and not is_broken_exchange(error):
            return error
        failure = self.look()
        if failure is not None and failure.rank != self._rank:
            return failure.as_error()
        return _lost(error) if is_broken_exchange(error) else error

    def end(self, error: BaseException) -> None:
        """Tell the others why this rank ends, unless they know it already. Rank 0 waits until all have noticed.

        If another has failed before, ``error`` is marked as told: one message is enough.
        """
        self._ends = True
        if not getattr(error, "told", False):
            own = failure_of(self._rank, error)
            with suppress(RuntimeError):
                self._store.compare_set(_KEY, "", json.dumps(asdict(own)))
            first = self.look()
            if first is not None and first.is_told and first.rank != self._rank and isinstance(error, Exception):
                error.told = True  # type: ignore[attr-defined]
        self._noticed.wait(_NOTICE_SECONDS)
        if self._known is not None and self._rank == 0:  # it may hold the store, so it is the last to leave
            self.wait_until_noticed(_NOTICE_SECONDS)

    def wait_until_noticed(self, seconds: float) -> None:
        """Wait until all ranks know of the failure, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):
            while self._store.add(_SEEN, 0) < self._size and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            time.sleep(_LAST_SECONDS if self._rank == 0 else 0)

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join(_PATIENCE_SECONDS)

    def _read(self) -> None:
        if self._store.check([_KEY]):
            self._known = Failure(**json.loads(self._store.get(_KEY)))

    def _watch(self) -> None:
        while self._known is None:
            if self._closed.wait(_LOOK_SECONDS):
                return
            try:
                self._read()
            except RuntimeError:
                self._known = Failure(0, "it has ended without giving an error", remedy=_LOOK_THERE, is_told=False)
        with suppress(RuntimeError):
            self._store.add(_SEEN, 1)
        self._noticed.set()
        if not self._closed.wait(_BREAK_SECONDS) and not self._ends:
            _interrupt(self._known.signal or "SIGTERM")
        if not self._closed.wait(GRACE_SECONDS):
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(self._known.exit_code)


def _interrupt(name: str) -> None:
    """Send this process a signal as a launcher would, if it is handled; else it would end without a last word."""
    number = signal.Signals[name]
    if callable(signal.getsignal(number)):
        os.kill(os.getpid(), number)


def is_request(error: BaseException) -> bool:
    """Whether an error is a stop that the ranks have agreed on, after which nothing is to be told."""
    return isinstance(error, AfzalError) and hasattr(error, "signal")


def _lost(error: BaseException) -> AfzalError:
    lines = [line for line in str(error).strip().splitlines() if line]
    return AfzalError(
        "another rank has ended, or has not answered, without giving an error",
        why=lines[0] if lines else type(error).__name__,
        remedy=_LOOK_THERE,
    )


def board_at(address: str, port: str, prefix: str, rank: int, size: int) -> Board:
    """A board on the ranks' store."""
    patience = timedelta(seconds=_PATIENCE_SECONDS)
    store = TCPStore(address, int(port), is_master=False, timeout=patience, wait_for_workers=False)
    return Board(PrefixStore(prefix, store), rank, size)
