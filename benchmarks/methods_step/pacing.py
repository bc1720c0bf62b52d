"""Run the sides in separate processes, in turns: each makes an update on request and reports its cost.

A side is set up, makes an untimed update, and waits. So no figure includes set-up or imports, and the other sides are
idle while one is timed. Processor seconds are user and system time of the process and its finished children.
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
    """The side's end of the pipe: :meth:`ended` reports an update's cost, and returns when the next is requested."""

    def __init__(self, hears: TextIO, says: TextIO) -> None:
        self.hears, self.says = hears, says
        self.began: tuple[float, float] | None = None

    def ended(self, loss: float) -> None:
        """Report an update (the first without seconds). Exits the process if no further update is requested."""
        clock, processor = marks()
        report: dict[str, Any] = {"loss": loss}
        if self.began is not None:
            report |= {"clock": clock - self.began[0], "processor": processor - self.began[1]}
        report["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
        self.says.write(json.dumps(report) + "\n")
        self.says.flush()
        if self.hears.readline().strip() != GO:
            os._exit(0)  # the end of a run is not measured
        self.began = marks()


def marks() -> tuple[float, float]:
    """Wall and processor seconds so far."""
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system


def of_this_process() -> Pace:
    """The pace of a process started by :class:`Side`; all other output of the process goes to its log."""
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Pace(sys.stdin, says)


class SideError(Exception):
    """A side exited or did not answer in time; the message says why, in one line."""


class Side:
    """The benchmark's end of the pipe to a side's process."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=dict(environment)
            )

    def answer(self, until: float) -> dict[str, Any]:
        """Wait for the current update's report.

        Args:
            until: deadline, by ``time.monotonic``.

        Raises:
            SideError: the process exited, or did not answer by then.
        """
        stream = _pipe(self.process.stdout)
        if not select.select([stream], [], [], max(until - time.monotonic(), 0))[0]:
            raise SideError("out of time")
        line = stream.readline()
        if not line:
            raise SideError(last_line(self.log))
        return json.loads(line)

    def go(self) -> None:
        """Request one more update."""
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
    """The last line of a log; after an error, its message."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it exited without output"


def take_turns(sides: Mapping[str, Side], updates: int, share: float, until: float) -> dict[str, Any]:
    """Let the sides make updates in turn: all make the same update before any makes the next.

    Args:
        updates: maximum number of timed updates.
        share: seconds after which no new round starts, except the first.
        until: deadline, by ``time.monotonic``; late sides are left out.

    Returns:
        by side ``first_loss``, ``clock``, ``processor``, ``peak_bytes``; and ``left_out`` with the reasons.
    """
    began = time.monotonic()
    results: dict[str, Any] = {"left_out": {}}
    going = dict(sides)

    def hear(name: str) -> dict[str, Any] | None:
        try:
            return going[name].answer(until)
        except SideError as error:
            results["left_out"][name] = str(error)
            going.pop(name).stop()
            results.pop(name, None)
            return None

    for name in sides:
        if report := hear(name):
            results[name] = {
                "first_loss": report["loss"],
                "clock": [],
                "processor": [],
                "peak_bytes": report["peak_bytes"],
            }
    for number in range(updates):
        round_began = time.monotonic()
        for name in list(going):
            going[name].go()
            if report := hear(name):
                results[name]["clock"].append(report["clock"])
                results[name]["processor"].append(report["processor"])
                results[name]["peak_bytes"] = report["peak_bytes"]
        took = time.monotonic() - round_began
        if time.monotonic() - began + took > share and number + 1 < updates:
            break
    return results
