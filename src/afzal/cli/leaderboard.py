"""``afzal leaderboard``: models by strength, or judges by accuracy, from verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from afzal.api.ranking import leaderboard
from afzal.cli.conclusion import print_conclusion
from afzal.terminal.conclusion import Step, step


def command(
    ctx: typer.Context,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Verdict files, or rows whose responses name their source.")
    ],
    of: Annotated[
        Literal["models", "judges"], typer.Option(help="What to rank; judges need the truth of each item.")
    ] = "models",
    ties: Annotated[
        Literal["half", "davidson", "rao_kupper"],
        typer.Option(help="How to count a tie: half a win, or a separate outcome."),
    ] = "half",
    length_control: Annotated[
        bool, typer.Option("--length-control", help="Also each model's win rate at equal answer lengths.")
    ] = False,
    beside: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rank correlation with the leaderboard in another file.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Count only the verdicts of this judge or annotator.")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=2, help="Resamples of whole prompts. Default 500 for models, 2000 for judges.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, figure, CSV and JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank models from votes or verdicts (Bradley-Terry with ties), or judges from items of known truth.

    Intervals are over prompts, since votes on one prompt are not independent. Models that were never compared, never
    lost or never won are listed without a number; the exit code is then 1.
    """
    result = leaderboard(
        files,
        of=of,
        ties=ties,
        length_control=length_control,
        beside=beside,
        judge=judge,
        resamples=resamples,
        seed=seed,
        out=out,
    )
    if as_json:
        typer.echo(json.dumps(result.body, indent=1, ensure_ascii=False))
    else:
        typer.echo(str(result))
        print_conclusion("", _steps(files, of, out, ctx.obj))
    if not result.ok:
        raise typer.Exit(1)


def _steps(files: list[str], of: str, out: Path | None, typed: list[str]) -> list[Step]:
    """The next steps: the page, if it was not written; for models, the voters' agreement."""
    page = [step(*typed, "--out", "leaderboard", why="as a page")] if out is None else []
    return [*page, *([] if of == "judges" else [step("aggregate", files[0], why="do the voters agree?")])]
