"""The last lines of a verb, as :mod:`afzal.terminal.closing` makes them, and what verbs need to know for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from afzal.terminal.closing import MODEL, Step, closing, step


def last(verdict: str, steps: Sequence[Step] = (), *, err: bool = False) -> None:
    """Print the verdict, unless it is empty, and the steps; on stderr where stdout is for machines."""
    for line in closing(verdict, steps):
        typer.echo(line, err=err)


def ways_to_learn(data: str, *, model: str = MODEL, ordered: bool = True) -> list[Step]:
    """Training on rows: by preferences where there are any, else by demonstrations."""
    return [step("train", "dpo" if ordered else "sft", "--model", model, "--data", data)]


def is_new(path: str | Path) -> bool:
    """Whether nothing stands there yet: a command that would write it would not be refused."""
    return not Path(path).exists()
