"""Stages of a benchmark, each a file or folder that is complete or absent: a killed run repeats one at most."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stage:
    """What is made, relative to the output folder, and how: ``make`` is given the path to leave it at."""

    name: str
    make: Callable[[Path], None]


def make_all(out: Path, stages: Sequence[Stage], say: Callable[[str], None] = print) -> None:
    """Make every stage that is not there, in order, and say how long each took."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (out / stage.name).exists():
            continue
        began = time.monotonic()
        # A killed stage leaves its unfinished files here: they are never read.
        unfinished = out / "unfinished" / stage.name
        remove(out / "unfinished")
        unfinished.parent.mkdir(parents=True)
        stage.make(unfinished)
        (out / stage.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished, out / stage.name)
        say(f"{stage.name:<20} {time.monotonic() - began:6.1f} s")
    remove(out / "unfinished")


def remove(path: Path) -> None:
    """A folder with all that is in it, where it is there."""
    if path.exists():
        shutil.rmtree(path)
