"""TensorBoard: event files in ``tensorboard/`` in the run folder, or below ``TENSORBOARD_LOGGING_DIR``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .tracker import Line, RunInfo


def open_run(run_info: RunInfo) -> _Events:
    """Open a new event file in the run's event folder; TensorBoard reads all files of a folder as one run."""
    from torch.utils.tensorboard import SummaryWriter

    parent = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = run_info.id or str(Path(parent) / run_info.name if parent else run_info.folder / "tensorboard")
    writer = SummaryWriter(log_dir=folder)
    if run_info.id is None:
        settings = json.dumps(dict(run_info.settings), indent=1, ensure_ascii=False, default=str)
        writer.add_text("settings", "\n".join(f"    {line}" for line in settings.splitlines()))
    return _Events(writer, folder)


class _Events:
    def __init__(self, writer: Any, folder: str) -> None:
        self.writer, self.id = writer, folder

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {self.id}"

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for name, value in line.metrics.items():
                self.writer.add_scalar(name, value, line.step)
        self.writer.flush()

    def finish(self, complete: bool) -> None:
        self.writer.close()
