"""The last lines of a verb, as :mod:`afzal.terminal.closing` makes them, and what verbs need to know for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from afzal.terminal.closing import MODEL, Step, closing, step


def last(verdict: str, steps: Sequence[Step] = (), *, err: bool = False) -> None:
    """Print the verdict, unless it is empty, and the steps; on stderr where stdout is for machines."""
    for line in closing(verdict, steps):
        typer.echo(line, err=err)


def facts_of(folder: str) -> dict[str, Any]:
    """The facts of a run; empty where the folder is none, such as a hub id."""
    from afzal import runs
    from afzal.errors import AfzalError

    try:
        return runs.open_run(folder).facts()
    except AfzalError:
        return {}


def start_of(folder: str) -> str | None:
    """The model that a run started from; None where the folder is no run, or names none."""
    model = facts_of(folder).get("model")
    return (model.get("path") or None) if isinstance(model, dict) else None


def ways_to_learn(data: str, *, model: str = MODEL, ordered: bool = True) -> list[Step]:
    """Training on rows: by preferences where there are any, else by demonstrations."""
    return [step("train", "dpo" if ordered else "sft", "--model", model, "--data", data)]


def is_new(path: str | Path) -> bool:
    """Whether nothing stands there yet: a command that would write it would not be refused."""
    return not Path(path).exists()
