"""Send metric lines to trackers in the background, with one thread and one queue per tracker.

A run puts a line into the queues and continues computing. A tracker that fails is dropped after one warning; one that
hangs is abandoned at the end. ``trackers.json`` in the run folder records what each tracker has, so a resumed run
continues there and sends no step twice: recomputed steps have the same numbers.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from afzal import runs

from .registry import opener
from .tracker import Line, RunInfo, Tracker

NOTES = "trackers.json"
_GATHER_SECONDS = 1.0  # seconds to gather lines: for a tracker, a call with many lines costs as much as one with one
_CLOSE_SECONDS = 30.0  # seconds that the end of a run waits for lines on their way


class Relay:
    """The trackers of one run, each in its own thread.

    Attributes:
        complete: whether the training was completed, for the trackers' status.
    """

    def __init__(self, names: Sequence[str], run_info: RunInfo, say: Callable[[str], None]) -> None:
        self.complete = False
        self._say, self._run_info, self._notes = say, run_info, _Notes(run_info.folder / NOTES)
        self._ending, self._messages = threading.Event(), SimpleQueue[str]()
        self._inboxes = {name: SimpleQueue[Line | None]() for name in names}
        self._threads = {
            name: threading.Thread(target=self._work, args=(name,), name=f"afzal-{name}", daemon=True) for name in names
        }
        for thread in self._threads.values():
            thread.start()

    def receive(self, record: Mapping[str, Any]) -> None:
        """Pass on a line of the metrics. Returns immediately, whatever the trackers do."""
        if not self._inboxes:
            return
        line = Line.of(record)
        for name, inbox in self._inboxes.items():
            if self._threads[name].is_alive():
                inbox.put(line)
        self._print_messages()

    def close(self, wait: float = _CLOSE_SECONDS) -> None:
        """Let the trackers receive the lines on their way, then end the threads.

        Args:
            wait: seconds; a tracker that takes longer is abandoned with a warning.
        """
        deadline = time.monotonic() + wait
        self._ending.set()
        for inbox in self._inboxes.values():
            inbox.put(None)
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._print_messages()
        for name, thread in self._threads.items():
            if thread.is_alive():
                self._say(
                    f"warning: {name} did not answer within {wait:g} s and may lack the last lines; {_NOTHING_LOST}"
                )

    def _print_messages(self) -> None:
        """Print the threads' messages from the run's thread, which draws the progress bar."""
        while True:
            try:
                self._say(self._messages.get_nowait())
            except Empty:
                return

    def _work(self, name: str) -> None:
        try:
            notes = self._notes.of(name)
            tracker = opener(name)(replace(self._run_info, id=notes.get("id")))
            self._notes.keep(name, id=tracker.id)
            self._messages.put(f"{name}: {tracker.where}")
            self._send(name, tracker, notes.get("steps", {}))
            tracker.finish(self.complete)
        except (Exception, SystemExit) as error:  # from a third-party library: whatever it is, the run continues
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            self._messages.put(f"warning: {name} records no more of this run: {problem[:300]}; {_NOTHING_LOST}")

    def _send(self, name: str, tracker: Tracker, last_sent: Mapping[str, int]) -> None:
        """Send lines until the end.

        Args:
            last_sent: the last step that an earlier process sent, by kind of line.
        """
        sent, inbox, ended = dict(last_sent), self._inboxes[name], False
        while not ended:
            lines = [inbox.get()]
            self._ending.wait(_GATHER_SECONDS)
            while not inbox.empty():
                lines.append(inbox.get())
            ended = None in lines
            new = [line for line in lines if line is not None and line.step > last_sent.get(line.kind, -1)]
            if new:
                tracker.log(new)
                sent |= {line.kind: line.step for line in new}
                self._notes.keep(name, steps=sent)


_NOTHING_LOST = "metrics.jsonl has every line, and --resume sends the missing ones"


class _Notes:
    """The file that records what each tracker has received."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.facts: dict[str, dict[str, Any]] = runs.read_json(path) if path.is_file() else {}

    def of(self, name: str) -> Mapping[str, Any]:
        """The recorded facts of a tracker."""
        return self.facts.get(name, {})

    def keep(self, name: str, **facts: Any) -> None:
        """Record further facts of a tracker."""
        with self.lock:
            self.facts = {**self.facts, name: {**self.facts.get(name, {}), **facts}}
            runs.atomic_write(self.path, json.dumps(self.facts, indent=1) + "\n")


@contextmanager
def open_relay(
    names: Sequence[str], run_info: RunInfo, earlier: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> Iterator[Relay]:
    """A relay to the named trackers, closed at the end of the block, however the block ends.

    Args:
        earlier: the lines already in the metrics; a tracker that lacks some of them gets them.
        say: prints a line for the user; called only from the caller's thread.
    """
    relay = Relay(names, run_info, say)
    try:
        for record in earlier if names else ():
            relay.receive(record)
        yield relay
    finally:
        relay.close()
