"""Weights & Biases: online with an account, or offline (``WANDB_MODE=offline``) until ``wandb sync``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

from afzal.errors import AfzalError

from .tracker import PROJECT, Line, RunInfo

STEP = "train/global_step"
"""The x axis of every chart: the update, named as in `transformers`.

W&B's own step is the row number. It only ever grows, so a line of another kind at the same step would be lost after a
resume.
"""


def refuse_unready() -> None:
    """Refuse a run without an account: W&B would ask for one at the terminal, and a run asks nothing.

    Raises:
        AfzalError: there is no account, and offline mode is not set.
    """
    import wandb  # pyright: ignore[reportMissingImports]

    if wandb.setup().settings.mode in ("offline", "disabled", "shared") or wandb.login(prompt=False):
        return
    raise AfzalError(
        "report_to wandb needs an account, or its offline mode",
        why="no API key is set (WANDB_API_KEY) or stored (wandb login)",
        remedy="wandb login; or WANDB_MODE=offline, and wandb sync later",
    )


def open_run(run_info: RunInfo) -> _Run:
    """Open a run of the project ``WANDB_PROJECT``; a run with the same id is continued."""
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_info.name,
        id=run_info.id or uuid.uuid4().hex[:8],
        resume="allow",
        config=dict(run_info.settings),
        settings=wandb.Settings(silent=True, console="off"),  # the terminal belongs to the run
    )
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self.run, self.id = run, str(run.id)
        self.where = f"wandb sync {os.path.relpath(os.path.dirname(run.dir))}" if run.offline else str(run.url)

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.run.log({STEP: line.step, **line.metrics})

    def finish(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)
