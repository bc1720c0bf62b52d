"""Stages of a benchmark, each a file or folder that is complete or absent: a killed run repeats one at most."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from benchmarks.machine import about_run

T = TypeVar("T")
Page: TypeAlias = Callable[[dict[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Stage:
    """What is made, relative to the output folder, and how: ``make`` is given the path to leave it at."""

    name: str
    make: Callable[[Path], None]


def make_all(
    out: Path, stages: Sequence[Stage], say: Callable[[str], None] = print, *, aside: str = "unfinished"
) -> None:
    """Make every stage that is not there, in order, and say how long each took.

    Args:
        aside: the folder in ``out`` of what is not finished; one for each process that makes stages there.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (out / stage.name).exists():
            continue
        began = time.monotonic()
        # A killed stage leaves its unfinished files here: they are never read.
        unfinished = out / aside / stage.name
        remove(out / aside)
        unfinished.parent.mkdir(parents=True)
        stage.make(unfinished)
        (out / stage.name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished, out / stage.name)
        say(f"{stage.name:<20} {time.monotonic() - began:6.1f} s")
    remove(out / aside)


def figures_command(
    about: str, module: str, quick: str, measured: Callable[[Path, T], dict[str, Any]], page: Page, sizes: tuple[T, T]
) -> None:
    """The command line of a benchmark that leaves figures as JSON and as a page, both named after its module.

    Args:
        about: the module's docstring.
        quick: what ``--quick`` does, for its help.
        measured: makes the figures in a folder.
        sizes: what is measured, and what is with ``--quick``.
    """
    import torch

    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the figures")
    parser.add_argument("--quick", action="store_true", help=quick)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    found = measured(given.out, sizes[1] if given.quick else sizes[0])
    found["about"] = about_run(module, ("afzal", "torch", "transformers"), threads=1)
    found["about"]["minutes"] = round((time.monotonic() - began) / 60, 1)
    stem = module.rpartition(".")[2].replace("_", "-")
    (given.out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / f"{stem}.md").write_text(page(found))
    print(page(found))


def remove(path: Path) -> None:
    """A folder with all that is in it, where it is there."""
    if path.exists():
        shutil.rmtree(path)
