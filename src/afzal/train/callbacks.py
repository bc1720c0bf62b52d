"""User functions that are called during training; any of them may stop the run."""

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
        step: updates so far, of ``steps`` planned.
        metrics: the line of ``metrics.jsonl`` that was just logged.
        path: the run folder.
        stop: ``stop("why")`` ends the run after this step. The model trained so far is saved; the run is complete.
    """

    step: int
    steps: int
    metrics: Mapping[str, Any]
    path: Path
    stop: Callable[[str], None]


Callback = Callable[[Progress], object]
"""The return value is ignored; an exception ends the run with an error that names the callback."""


class Relay(Protocol):
    """Passes metric records on to trackers; returns immediately and never fails."""

    def receive(self, record: Mapping[str, Any]) -> None:
        """Receive a metric record that was logged."""
        ...


STOPPED = "callback"
"""The stop reason of a run that a callback stopped."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The callbacks of a run, called by rank 0 in the given order."""

    on_step: Sequence[Callback] = ()
    on_evaluation: Sequence[Callback] = ()
    stop_requests: list[str] = field(default_factory=list)

    def receive(self, record: Mapping[str, Any], steps: int, path: Path) -> None:
        """Call the callbacks for this kind of metric record.

        Raises:
            AfzalError: a callback failed; the error names it.
        """
        kinds = {"train": ("on_step", self.on_step), "eval": ("on_evaluation", self.on_evaluation)}
        name, functions = kinds.get(str(record.get("kind")), ("", ()))
        if not functions or not ranks.leads():
            return
        step = int(record["step"])
        for fn in functions:
            call_callback(name, fn, Progress(step, steps, record, path, self._stopper(fn)), f"step {step}")

    def requested(self) -> str | None:
        """``callback`` once one has requested a stop, else None; the reasons are in ``stop_requests``."""
        return STOPPED if self.stop_requests else None

    def _stopper(self, fn: Callback) -> Callable[[str], None]:
        def stop(why: str = "") -> None:
            self.stop_requests.append(f"{function_name(fn)}: {why}" if why else function_name(fn))

        return stop


@dataclass(frozen=True, slots=True)
class RunListeners:
    """Receivers of a run's metrics (trackers and callbacks), and sources of stop requests (signals and callbacks)."""

    signals: StopSignals
    callbacks: Callbacks
    relay: Relay | None = None

    def receive(self, record: Mapping[str, Any], steps: int, path: Path) -> None:
        """Pass on a metric record that was logged."""
        if self.relay is not None:
            self.relay.receive(record)
        self.callbacks.receive(record, steps, path)

    def requested(self) -> str | None:
        """The name of the signal that requests a stop, or ``callback``; None without a request."""
        return self.signals.requested or self.callbacks.requested()


def call_callback(name: str, fn: Callable[[Any], object], argument: Any, where: str) -> None:
    """Call ``fn(argument)``.

    Args:
        name: the setting that ``fn`` was passed as.

    Raises:
        AfzalError: it failed; the error names setting and function.
    """
    try:
        fn(argument)
    except AfzalError:
        raise
    except Exception as error:
        raise AfzalError(
            f"the {name} callback {function_name(fn)} failed: {type(error).__name__}: {error}",
            where=where,
            remedy="fix the callback; continue a run that it ended with resume=True",
        ) from error


def function_name(fn: Any) -> str:
    """A function's name for messages."""
    return getattr(fn, "__qualname__", type(fn).__name__)
