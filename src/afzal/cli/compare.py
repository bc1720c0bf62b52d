"""``afzal compare FILE.yaml key=value ...``: several methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afzal import config
from afzal.cli import start


def command(
    file: Annotated[Path, typer.Argument(help="The comparison as YAML: see docs/compare.md.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and runs, train nothing.")] = False,
    png: Annotated[
        bool, typer.Option("--png", help="Draw compare.svg as compare.png too; needs pip install 'afzal[png]'.")
    ] = False,
) -> None:
    """Train or reuse several methods, draw reward against KL, and set them side by side.

    Run the same command again to resume; a finished run is reused only if its settings are the same.
    """
    from afzal import report

    typed = [config.read_override(text) for text in overrides or ()]
    settings = config.build(config.CompareConfig, [*config.read_file(file), *typed])
    if png:
        report.require_png()
    if not dry_run:
        start.begin(settings, f"comparison of {len(settings.methods)} methods, into {settings.out}")
    from afzal.compare import compare, plan

    if dry_run:
        typer.echo(config.dump(settings))
        for line in plan(settings):
            typer.echo(line)
        return
    page = compare(settings, say=typer.echo)
    if png:
        report.write_png(page.with_suffix(".svg"))
    typer.echo(f"report: {page}")
