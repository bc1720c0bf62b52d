"""``afzal compare FILE.yaml key=value ...``: compare several methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from afzal import config
from afzal.cli import startup


def command(
    file: Annotated[Path, typer.Argument(help="The comparison as YAML: see docs/compare.md.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and runs, train nothing.")] = False,
    png: Annotated[
        bool, typer.Option("--png", help=r"Also write compare.png; needs pip install 'afzal\[png]'.")
    ] = False,
) -> None:
    """Train or reuse several methods, plot reward against KL, and compare them.

    Run the same command again to resume; a finished run is reused only if its settings are the same.
    """
    from afzal import report

    settings = config.of_file(config.CompareConfig, file, overrides or ())
    if png:
        report.require_png()
    if not dry_run:
        startup.begin(settings, f"comparison of {len(settings.methods)} methods, into {settings.out}")
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
    if page.with_suffix(".json").exists():
        _conclude(settings, page)


def _conclude(settings: config.CompareConfig, page: Path) -> None:
    """Print which method leads, and a blind chat between the two with the highest first reward."""
    from afzal.cli.conclusion import print_conclusion
    from afzal.report.comparison_views import findings
    from afzal.terminal.conclusion import step

    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    chief, seed = body["rewards"][0], body["seeds"][0]
    rewards = {m["name"]: m["judged"]["rewards"][chief]["value"] for m in body["methods"] if m["judged"]["seeds"]}
    folders = {name: body["runs"].get(f"{name}-{seed}", {}).get("folder") for name in rewards}
    leading = [folders[name] for name in sorted(rewards, key=lambda name: -rewards[name]) if folders[name]]
    steps = []
    if leading:
        opponent = leading[1] if len(leading) > 1 else settings.model
        steps.append(
            step("chat", leading[0], "--against", opponent, "--blind", why="which one do you prefer? vote blind")
        )
    print_conclusion(findings(body)[0], [*steps, step("board", settings.out, why="curves of all runs")])
