"""Turn Ctrl-C, SIGTERM and SIGHUP into a stop request, on which the loop saves and says how to resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from afzal.errors import Terminated

EXIT_CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}
"""Exit codes after stopping on a signal: 128 + its number, as shells expect."""

_SIGNALS = tuple(signal.Signals[name] for name in EXIT_CODES if hasattr(signal, name))  # Windows has no SIGHUP


class StopSignals:
    """Inside the block, the first SIGINT, SIGTERM or SIGHUP only sets ``requested`` to its name.

    SIGHUP is sent when a terminal closes; if it is ignored, as under ``nohup``, it stays ignored. A second Ctrl-C
    raises ``KeyboardInterrupt`` immediately, for users who do not want to wait. The previous handlers are restored at
    the end. Outside the main thread, where Python allows no handlers, this does nothing. Without a block,
    :meth:`listen` begins and :meth:`leave` ends it.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.interrupts = False  # whether a request raises an exception: see `interruptible`
        self._interrupts = 0
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> StopSignals:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def listen(self) -> None:
        """Take the signals over, unless that was done before."""
        if not self._before and threading.current_thread() is threading.main_thread():
            handled = [n for n in _SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
            _listening.append(self)

    def leave(self) -> None:
        """Restore the previous handlers."""
        if self in _listening:
            _listening.remove(self)
        for number, handler in self._before.items():
            # None: a handler that was not installed by Python, which Python cannot restore
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name
        if self.interrupts:
            self.interrupts = False  # once: the work that was interrupted cleans up
            raise _interruption(self.requested)


_listening: list[StopSignals] = []  # the last takes the signals


def _interruption(name: str) -> BaseException:
    return KeyboardInterrupt() if name == "SIGINT" else Terminated(name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block, a stop request raises ``KeyboardInterrupt`` or ``Terminated`` at once; also an earlier one.

    For long work that can be repeated, in a run whose :class:`StopSignals` would else only note the request.
    """
    stop = _listening[-1] if _listening else None
    if stop is None:
        yield
        return
    stop.interrupts = True
    try:
        if stop.requested:
            raise _interruption(stop.requested)
        yield
    finally:
        stop.interrupts = False


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Inside the block, on the main thread, no signal interrupts the last words of a process that ends anyway."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS if on_main_thread}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop_on_signals() -> StopSignals:
    """``with stop_on_signals() as stop: ... if stop.requested: save and leave``; or call ``listen`` later."""
    return StopSignals()
