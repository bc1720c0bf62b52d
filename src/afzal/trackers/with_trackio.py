"""Trackio: a database on this machine, or the Space of ``TRACKIO_SPACE_ID``; project ``TRACKIO_PROJECT``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

from .tracker import PROJECT, Line, RunInfo


def open_run(run_info: RunInfo) -> _Run:
    """Open a run of the project. Trackio finds a run by its name, so the name gets a unique suffix."""
    import trackio  # pyright: ignore[reportMissingImports]

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = trackio.init(
        project=project,
        name=run_info.id or f"{run_info.name}-{uuid.uuid4().hex[:6]}",
        resume="never" if run_info.id is None else "allow",
        config=dict(run_info.settings),
        embed=False,
    )
    return _Run(run, project)


class _Run:
    def __init__(self, run: Any, project: str) -> None:
        self.run, self.id = run, str(run.name)
        self.where = str(run.url or f"trackio show --project {project}")

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.run.log(dict(line.metrics), step=line.step)

    def finish(self, complete: bool) -> None:
        self.run.finish()
