"""Resumable benchmark stages: each output is complete or absent, so a killed run repeats at most one stage."""

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
    """An output, named relative to the output folder, and the function that writes it to a given path."""

    name: str
    make: Callable[[Path], None]


def make_all(
    out: Path, stages: Sequence[Stage], say: Callable[[str], None] = print, *, aside: str = "unfinished"
) -> None:
    """Make the missing stages in order, and report how long each took.

    Args:
        aside: folder in ``out`` for unfinished stages; each process that makes stages there needs its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (out / stage.name).exists():
            continue
        began = time.monotonic()
        # A killed stage leaves its unfinished files here. Nothing reads them.
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
    """Command line of a benchmark that writes its figures as JSON and as a page, both named after the module.

    Args:
        about: the module's docstring.
        quick: help text for ``--quick``.
        measured: computes the figures in a folder.
        sizes: the full size, and the size for ``--quick``.
    """
    import torch

    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the figures")
    parser.add_argument("--quick", action="store_true", help=quick)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    figures = measured(options.out, sizes[1] if options.quick else sizes[0])
    figures["about"] = about_run(module, ("afzal", "torch", "transformers"), threads=1)
    figures["about"]["minutes"] = round((time.monotonic() - began) / 60, 1)
    stem = module.rpartition(".")[2].replace("_", "-")
    (options.out / f"{stem}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text(page(figures))
    print(page(figures))


def remove(path: Path) -> None:
    """Delete a folder and its contents, if it exists."""
    if path.exists():
        shutil.rmtree(path)
