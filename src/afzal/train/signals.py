"""Ctrl-C, SIGTERM and SIGHUP as a request that the loop sees between two steps: it saves, and says how to resume."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

EXIT_CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}
"""What the process exits with after stopping on a signal: 128 + its number, as shells expect."""

_SIGNALS = tuple(signal.Signals[name] for name in EXIT_CODES if hasattr(signal, name))  # Windows has no SIGHUP


class StopSignals:
    """While the block runs, the first SIGINT, SIGTERM or SIGHUP only sets ``requested`` to its name.

    SIGHUP comes when a terminal is closed; where it is ignored, as under ``nohup``, it stays so. A second Ctrl-C raises
    ``KeyboardInterrupt`` at once, for a person who will not wait. The handlers that were there come back at the end.
    Away from the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._interrupts = 0
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in _SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set by Python and that Python cannot set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


def stop_on_signals() -> StopSignals:
    """``with stop_on_signals() as stop: ... if stop.requested: save and leave``."""
    return StopSignals()
