"""Progress display of a run: a bar with the time left on a terminal, one plain line per interval in a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from afzal.terminal.console import VisibleConsole
from afzal.text import duration
from afzal.text import time_left as remaining

_SECONDS_BETWEEN_LINES = 10.0


class ClosableStream:
    """A stream that may go away: a run continues when its terminal or the reader of its pipe is closed."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Like any text stream's; does nothing if the stream is gone."""
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Like any text stream's; does nothing if the stream is gone."""
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Reporter:
    """Receives every logged record. Use as a context manager."""

    def __init__(self, steps: int, start: int = 0, console: Console | None = None) -> None:
        beneath = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        self.console = console or VisibleConsole(file=cast("TextIO", ClosableStream(beneath)))
        self.steps, self.start, self.last_line = steps, start, 0.0
        self.first: dict[str, Any] | None = None
        self.latest: dict[str, Any] = {}  # metrics of the last rollout
        self.bar = _bar(self.console) if self.console.is_terminal else None
        self.task = self.bar.add_task("training", total=steps, completed=start, facts="") if self.bar else None

    def __enter__(self) -> Reporter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        (self.bar.console if self.bar else self.console).print(
            line, highlight=False, markup=False, emoji=False, soft_wrap=True
        )

    def record(self, record: dict[str, Any]) -> None:
        """Show a metrics record: evaluations always, training steps on the bar or at intervals."""
        if record["kind"] == "rollout":
            self.latest = {"reward": record["objective/scores"], "kl": record["objective/kl_exact"]}
            return
        if record["kind"] == "eval":
            self.say(f"held-out at step {record['step']}: {facts(record)}")
            return
        if record["kind"] != "train":
            return
        record = {**self.latest, **record}
        self.first = self.first or record
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=record["step"], facts=facts(record))
        elif record["step"] == self.steps or time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.say(
                f"step {record['step']}/{self.steps}  {facts(record)}  {time_left(self.first, record, self.steps)}"
            )


def facts(record: dict[str, Any]) -> str:
    """The most important metrics, as text."""
    columns = [("loss", "loss", ".4f"), ("rewards/accuracies", "accuracy", ".3f"), ("rewards/margins", "margin", ".3f")]
    columns += [("reward", "reward", ".3f"), ("kl", "KL", ".2f"), ("perplexity", "perplexity", ".2f")]
    return "  ".join(f"{label} {record[name]:{fmt}}" for name, label, fmt in columns if name in record)


def time_left(first: dict[str, Any], record: dict[str, Any], steps: int) -> str:
    """The time so far and, from the second record on, the time left at the pace since the first one.

    Earlier work (loading, the evaluation at step 0, an earlier process) says nothing about the pace.
    """
    elapsed = duration(record["seconds"])
    steps_done = record["step"] - first["step"]
    if not steps_done or record["step"] == steps:
        return elapsed
    rate = (record["seconds"] - first["seconds"]) / steps_done
    return f"{elapsed}, {remaining(rate * (steps - record['step']))}"


def _bar(console: Console) -> Progress:
    """On a narrow terminal the facts are truncated, never the time left."""
    times = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    facts_column = TextColumn("{task.fields[facts]}", table_column=column)
    return Progress(BarColumn(bar_width=10), *times, facts_column, console=console, expand=True)
