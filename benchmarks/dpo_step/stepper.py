"""A training loop that pauses between two updates, so that several can take turns in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one update: wall time, and processor time of the process, of which only one loop runs at a time."""

    wall: float
    processor: float


class Stepper:
    """Runs ``loop(began, ended)`` in a separate thread, one update at a time.

    The loop calls ``began()`` before and ``ended(loss)`` after each update; the time between is measured.
    """

    def __init__(self, name: str, loop: Callable[[Callable[[], None], Callable[[float], None]], None]) -> None:
        self.name, self.loop = name, loop
        self.losses: list[float] = []
        self.timings: list[Timing] = []
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def step(self) -> Timing:
        """Make one update."""
        self._go.release()
        self._wait()
        return self.timings[-1]

    def stop(self) -> None:
        """End the loop at its next pause."""
        self._stopping = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._paused.acquire()
        if self._error is not None:
            raise RuntimeError(f"{self.name} stopped") from self._error

    def _run(self) -> None:
        try:
            self.loop(self._began, self._ended)
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        self._paused.release()

    def _began(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._stopping:
            raise _StoppedError
        self._start = time.perf_counter(), time.process_time()

    def _ended(self, loss: float) -> None:
        wall, processor = self._start
        self.timings.append(Timing(time.perf_counter() - wall, time.process_time() - processor))
        self.losses.append(loss)


class _StoppedError(Exception):
    pass
