"""The last lines of a verb's output, made by :mod:`afzal.terminal.conclusion`, and helpers for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from afzal.terminal.conclusion import MODEL, Step, conclusion_lines, step


def print_conclusion(verdict: str, steps: Sequence[Step] = (), *, err: bool = False) -> None:
    """Print the verdict, unless it is empty, and the steps; on stderr if machines read stdout."""
    for line in conclusion_lines(verdict, steps):
        typer.echo(line, err=err)


def ways_to_learn(data: str, *, model: str = MODEL, preferences: bool = True) -> list[Step]:
    """Steps that train on rows: on preferences if there are any, else on demonstrations."""
    return [step("train", "dpo" if preferences else "sft", "--model", model, "--data", data)]


def is_new(path: str | Path) -> bool:
    """Whether the path does not exist yet, so that a command may write it."""
    return not Path(path).exists()
