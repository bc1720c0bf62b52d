"""Training as a stage of something longer: started, resumed after a kill, or skipped if finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from afzal import runs
from afzal.config import TrainConfig
from afzal.recipes.train import train
from afzal.train.callbacks import Callbacks


def train_once(config: TrainConfig, callbacks: Callbacks | None = None) -> Path:
    """Train into ``config.out``, from the start or the newest checkpoint, unless the run is finished; return its
    folder.

    Args:
        callbacks: called during training.

    Raises:
        AfzalError: as for :func:`afzal.recipes.train.train`; an existing run has other settings.
    """
    train_unless_finished(config.out, lambda resume: train(config, resume=resume, callbacks=callbacks))
    return Path(config.out)


def train_unless_finished(folder: str, train: Callable[[bool], object]) -> None:
    """Train into a folder, unless it holds a finished run.

    Args:
        train: called with whether there is a run to resume.

    Raises:
        AfzalError: as for :func:`afzal.recipes.train.train`; an existing run has other settings.
    """
    out = Path(folder)
    started = (out / "run.json").exists()
    if started and runs.open_run(out).status() == "finished" and (out / "report.html").exists():
        return
    if not started and out.exists():  # killed before it wrote run.json
        shutil.rmtree(out)
    train(started)
