"""``afzal demo``: the whole pipeline on a built-in language, then on real data if a model and a file are given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afzal.errors import AfzalError


def command(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer updates: seconds instead of minutes.")] = False,
    model: Annotated[str | None, typer.Option(help="A model to train as well, on --data.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Preferences to train --model on.", show_default=False)] = None,
) -> None:
    """Make preferences in a language small enough to enumerate, train SFT and DPO on them, and show the exact gain."""
    if (model is None) != (data is None):
        raise AfzalError("--model and --data go together", remedy="give both, or neither")
    from afzal.cli.conclusion import print_conclusion
    from afzal.cli.interruption import announce
    from afzal.lab import demo
    from afzal.terminal.conclusion import step

    announce(f"demo, into {out}", out)
    run = demo.run(out=out, quick=quick, model=model, data=data)
    print_conclusion(
        "", [step("board", run.parent, why="the curves of its runs"), step("report", run, why="is each curve normal?")]
    )
