"""Functions of one's own that are called while a run trains; any of them may stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from afzal.errors import AfzalError
from afzal.train import ranks
from afzal.train.signals import StopSignals


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, for a callback.

    Attributes:
        step: updates made so far; ``steps`` is their planned number.
        metrics: what was just logged: the line of ``metrics.jsonl``.
        path: the run folder.
        stop: ``stop("why")`` ends the run after this step. What is trained so far is saved, and the run is finished.
    """

    step: int
    steps: int
    metrics: Mapping[str, Any]
    path: Path
    stop: Callable[[str], None]


Callback = Callable[[Progress], object]
"""What it returns is ignored; an exception ends the run, which names the callback."""


class Relay(Protocol):
    """Passes lines of the metrics on to trackers; returns at once and never fails."""

    def hear(self, record: Mapping[str, Any]) -> None:
        """A line of the metrics was logged."""
        ...


STOPPED = "callback"
"""Why a run stopped that a callback stopped."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The callbacks of a run, called by rank 0 in their order."""

    on_step: Sequence[Callback] = ()
    on_evaluation: Sequence[Callback] = ()
    asked: list[str] = field(default_factory=list)

    def hear(self, record: Mapping[str, Any], steps: int, path: Path) -> None:
        """Call what is waiting for such a line of the metrics.

        Raises:
            AfzalError: a callback failed; names it.
        """
        kinds = {"train": ("on_step", self.on_step), "eval": ("on_evaluation", self.on_evaluation)}
        name, functions = kinds.get(str(record.get("kind")), ("", ()))
        if not functions or not ranks.leads():
            return
        step = int(record["step"])
        for fn in functions:
            call(name, fn, Progress(step, steps, record, path, self._stopper(fn)), f"step {step}")

    def requested(self) -> str | None:
        """``callback`` once one has asked to stop; what it said is ``asked``."""
        return STOPPED if self.asked else None

    def _stopper(self, fn: Callback) -> Callable[[str], None]:
        def stop(why: str = "") -> None:
            self.asked.append(f"{called(fn)}: {why}" if why else called(fn))

        return stop


@dataclass(frozen=True, slots=True)
class Audience:
    """Who hears the metrics of a run, and who may ask it to stop: signals and callbacks may, trackers only hear."""

    signals: StopSignals
    callbacks: Callbacks
    relay: Relay | None = None

    def hear(self, record: Mapping[str, Any], steps: int, path: Path) -> None:
        """A line of the metrics was logged."""
        if self.relay is not None:
            self.relay.hear(record)
        self.callbacks.hear(record, steps, path)

    def requested(self) -> str | None:
        """The name of the signal that asks the run to stop, or ``callback``."""
        return self.signals.requested or self.callbacks.requested()


def call(name: str, fn: Callable[[Any], object], given: Any, where: str) -> None:
    """``fn(given)``.

    Raises:
        AfzalError: it failed; names the argument that it was given by, and the function.
    """
    try:
        fn(given)
    except AfzalError:
        raise
    except Exception as error:
        raise AfzalError(
            f"the {name} callback {called(fn)} failed: {type(error).__name__}: {error}",
            where=where,
            remedy="fix the callback; a run that it ended continues with resume=True",
        ) from error


def called(fn: Any) -> str:
    """The name of a function, for messages."""
    return getattr(fn, "__qualname__", type(fn).__name__)
