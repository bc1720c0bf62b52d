"""What a tracker is told of a run, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "afzal"
"""The project or experiment of runs, where the tracker's own environment variable names none."""

_NO_METRICS = ("step", "kind")


@dataclass(frozen=True, slots=True)
class About:
    """A run, for a tracker.

    Attributes:
        name: what the run is called.
        folder: the run folder.
        settings: the resolved settings, secrets hidden.
        id: what the tracker called the run when it was opened before; None where it never was.
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
        """The line of a record; what is no number is left out."""
        kind = str(record["kind"])
        numbers = {
            metric_name(kind, key): float(value)
            for key, value in record.items()
            if key not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
        }
        return cls(kind, int(record["step"]), numbers)


def metric_name(kind: str, key: str) -> str:
    """``train/loss``, ``eval/loss``, ``rollout/length``: the kind of the line before the name, as `transformers` does,
    since one step may have lines of several kinds."""
    return key if key.startswith(f"{kind}/") else f"{kind}/{key}"


class Tracker(Protocol):
    """A run that is open in a tracker. Every method may raise anything, and may take long."""

    @property
    def id(self) -> str:
        """What opens the same run again."""
        ...

    @property
    def where(self) -> str:
        """Where a person finds it: an address, a folder or a command."""
        ...

    def log(self, lines: Sequence[Line]) -> None:
        """Record the lines, in their order."""
        ...

    def finish(self, whole: bool) -> None:
        """Write out what is not written yet, and close the run.

        Args:
            whole: whether the training reached its end.
        """
        ...
