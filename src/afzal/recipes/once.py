"""A training as a stage of something longer: made, resumed where it was killed, or found finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from afzal import runs
from afzal.config import TrainConfig
from afzal.recipes.train import train
from afzal.train.callbacks import Callbacks


def train_once(config: TrainConfig, callbacks: Callbacks | None = None) -> Path:
    """The finished run in ``config.out``: from its beginning, from its newest checkpoint, or as it stands.

    Args:
        callbacks: called while it trains.

    Raises:
        AfzalError: as for :func:`afzal.recipes.train.train`; a run that is there has other settings.
    """
    once(config.out, lambda resume: train(config, resume=resume, callbacks=callbacks))
    return Path(config.out)


def once(folder: str, train: Callable[[bool], object]) -> None:
    """Train into a folder, unless a finished run is there.

    Args:
        train: told whether there is a run to resume.

    Raises:
        AfzalError: as for :func:`afzal.recipes.train.train`; a run that is there has other settings.
    """
    out = Path(folder)
    begun = (out / "run.json").exists()
    if begun and runs.open_run(out).status() == "finished" and (out / "report.html").exists():
        return
    if not begun and out.exists():  # killed before it had said what it is
        shutil.rmtree(out)
    train(begun)
