"""The data that a tracker gets about a run, and the interface that it must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "afzal"
"""The project or experiment of runs, unless the tracker's own environment variable names one."""

_NO_METRICS = ("step", "kind")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The description of a run for a tracker.

    Attributes:
        name: the run's name.
        folder: the run folder.
        settings: the resolved settings, secrets hidden.
        id: the tracker's id of the run, if it was opened before; else None.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The numbers of one line of ``metrics.jsonl``, under the names of :func:`metric_name`."""

    kind: str
    step: int
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Line:
        """The line of a record; values that are not numbers are skipped."""
        kind = str(record["kind"])
        numbers = {
            metric_name(kind, key): float(value)
            for key, value in record.items()
            if key not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
        }
        return cls(kind, int(record["step"]), numbers)


def metric_name(kind: str, key: str) -> str:
    """The name prefixed by the kind of the line, as in `transformers`: ``train/loss``, ``eval/loss``,
    ``rollout/length``. One step may have lines of several kinds."""
    return key if key.startswith(f"{kind}/") else f"{kind}/{key}"


class Tracker(Protocol):
    """An open run in a tracker. Every method may raise anything, and may take long."""

    @property
    def id(self) -> str:
        """The id that reopens the same run."""
        ...

    @property
    def where(self) -> str:
        """Where to find the run: an address, a folder or a command."""
        ...

    def log(self, lines: Sequence[Line]) -> None:
        """Record the lines in order."""
        ...

    def finish(self, complete: bool) -> None:
        """Flush pending lines and close the run.

        Args:
            complete: whether the training was completed.
        """
        ...
