"""Open the experiment trackers of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from afzal import runs, trackers
from afzal.config import TrainConfig
from afzal.train import ranks

_PARTS = 4  # in the name of a run outside the working folder


def tracked(config: TrainConfig, run: runs.Run, say: Callable[[str], None]) -> AbstractContextManager[trackers.Relay]:
    """The relay to the trackers of ``report_to``, on rank 0. Trackers first get existing metrics that they lack.

    Args:
        say: prints lines for the user.
    """
    names = (config.report_to or ()) if ranks.leads() else ()
    about = trackers.RunInfo(name_of(run.path), run.path, runs.redact_config(config.model_dump(mode="json")))
    return trackers.open_relay(names, about, run.metrics() if names else (), say)


def name_of(folder: Path) -> str:
    """A run's name: its path below the working folder, without a leading ``runs/``.

    The last part alone would be ambiguous: every round of ``afzal iterate`` trains in a folder ``run``.
    """
    path, here = folder.resolve(), Path.cwd().resolve()
    parts = path.relative_to(here).parts if path.is_relative_to(here) else path.parts[-_PARTS:]
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "runs" else parts).strip("/") or path.name


def catch_up(config: TrainConfig, run: runs.Run, say: Callable[[str], None]) -> None:
    """Send trackers the metrics of a finished run that they lack."""
    with tracked(config, run, say) as relay:
        relay.complete = True
