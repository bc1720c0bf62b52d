"""``afzal sweep FILE.yaml key=value ...``: vary settings, and choose the best within a KL budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from afzal import config
from afzal.cli import startup


def command(
    file: Annotated[Path, typer.Argument(help="The sweep as YAML: see docs/sweep.md.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
    more: Annotated[int, typer.Option("--more", min=0, help="Add this many arms to those of earlier commands.")] = 0,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Number of parallel trainings, as far as memory allows.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show arms and cost, train nothing.")] = False,
) -> None:
    """Train many arms, choose the best on held-out prompts within a KL budget, and confirm it with fresh seeds.

    The same command resumes a stopped sweep. Exit code 1 if no arm finished.
    """
    settings = config.of_file(config.SweepConfig, file, overrides or ())
    if not dry_run:
        startup.begin(settings, f"sweep over {', '.join(axis.key for axis in settings.axes)}, into {settings.out}")
    from afzal.sweep import plan, sweep

    if dry_run:
        for line in plan(settings, more=more):
            typer.echo(line)
        return
    outcome = sweep(settings, more=more, jobs=jobs, say=typer.echo)
    typer.echo(f"report: {outcome.page}")
    _conclude(settings, outcome.page)
    if not outcome.finished:
        raise typer.Exit(1)


def _conclude(settings: config.SweepConfig, page: Path) -> None:
    """Print the choice, and the training that repeats it."""
    from afzal.cli.conclusion import print_conclusion
    from afzal.report.sweep_views import findings
    from afzal.terminal.conclusion import step

    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    chosen = [step("train", Path(settings.out, "run.yaml"), why="the choice by itself")] if body["choice"] else []
    print_conclusion(findings(body)[0], [*chosen, step("board", settings.out, why="curves of all arms")])
