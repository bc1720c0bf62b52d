"""Sides in processes of their own that take turns: each makes an update when it is told to, and says what it took.

A side is set up, makes an update that is not timed, and waits. So set-up and imports are in no figure, and the other
sides rest while one is timed. Processor seconds are those of the process and of its ended children, user and system.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

GO = "go"
KIBIBYTE = 1024  # ru_maxrss on Linux


class Pace:
    """The side's end: :meth:`ended` after every update says what it took, and returns when the next one is due."""

    def __init__(self, hears: TextIO, says: TextIO) -> None:
        self.hears, self.says = hears, says
        self.began: tuple[float, float] | None = None

    def ended(self, loss: float) -> None:
        """An update is made; of the first one there are no seconds. Ends the process when no more are asked for."""
        clock, processor = marks()
        told: dict[str, Any] = {"loss": loss}
        if self.began is not None:
            told |= {"clock": clock - self.began[0], "processor": processor - self.began[1]}
        told["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
        self.says.write(json.dumps(told) + "\n")
        self.says.flush()
        if self.hears.readline().strip() != GO:
            os._exit(0)  # what a run does at its end is not measured
        self.began = marks()


def marks() -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system


def of_this_process() -> Pace:
    """The pace of a process that :class:`Side` started; everything else that it prints goes to its log."""
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Pace(sys.stdin, says)


class SideError(Exception):
    """A side ended, or did not answer in time: why, in one line."""


class Side:
    """The bench's end of a side's process."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=dict(environment)
            )

    def answer(self, until: float) -> dict[str, Any]:
        """What the update that is under way took.

        Args:
            until: the latest time, by ``time.monotonic``.

        Raises:
            SideError: the process ended, or did not answer by then.
        """
        stream = _pipe(self.process.stdout)
        if not select.select([stream], [], [], max(until - time.monotonic(), 0))[0]:
            raise SideError("the time was up")
        line = stream.readline()
        if not line:
            raise SideError(last_line(self.log))
        return json.loads(line)

    def go(self) -> None:
        """Let it make one more update."""
        stream = _pipe(self.process.stdin)
        stream.write(f"{GO}\n".encode())
        stream.flush()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def last_line(log: Path) -> str:
    """The last line that a process wrote: of an error, its message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def take_turns(sides: Mapping[str, Side], updates: int, share: float, until: float) -> dict[str, Any]:
    """Let the sides make updates in turn, each the same one before any makes the next.

    Args:
        updates: that are timed, at most.
        share: seconds after which no new round begins, unless it is the first.
        until: the latest time, by ``time.monotonic``; what is late is left out.

    Returns:
        by side ``first_loss``, ``clock``, ``processor``, ``peak_bytes``; and ``left_out`` with the reasons.
    """
    began = time.monotonic()
    found: dict[str, Any] = {"left_out": {}}
    going = dict(sides)

    def hear(name: str) -> dict[str, Any] | None:
        try:
            return going[name].answer(until)
        except SideError as error:
            found["left_out"][name] = str(error)
            going.pop(name).stop()
            found.pop(name, None)
            return None

    for name in sides:
        if told := hear(name):
            found[name] = {"first_loss": told["loss"], "clock": [], "processor": [], "peak_bytes": told["peak_bytes"]}
    for number in range(updates):
        round_began = time.monotonic()
        for name in list(going):
            going[name].go()
            if told := hear(name):
                found[name]["clock"].append(told["clock"])
                found[name]["processor"].append(told["processor"])
                found[name]["peak_bytes"] = told["peak_bytes"]
        took = time.monotonic() - round_began
        if time.monotonic() - began + took > share and number + 1 < updates:
            break
    return found
