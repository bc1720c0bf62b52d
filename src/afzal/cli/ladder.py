"""``afzal ladder FILE.yaml key=value ...``: levels of an assisted judge, each trained from the one below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.text import plural


def command(
    file: Annotated[Path, typer.Argument(help="The ladder as YAML: see docs/debate.md.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and stages, do nothing.")] = False,
) -> None:
    """Recursive reward modelling: a judge labels; a reward model and a policy learn from it and assist the next judge.

    Run the same command again to resume; a higher levels= adds levels to a finished ladder.
    """
    settings = config.of_file(config.LadderConfig, file, overrides or ())
    if not dry_run:
        startup.begin(
            settings, f"ladder of {plural(settings.levels, 'assisted level')} on {settings.data}, into {settings.out}"
        )
    from afzal.ladder import ladder, plan

    if dry_run:
        typer.echo(config.dump(settings))
        for line in plan(settings):
            typer.echo(line)
        return
    page = ladder(settings, say=lambda line: typer.echo(line, err=True))
    typer.echo(f"report: {page}")
    _conclude(settings, file, json.loads(page.with_suffix(".json").read_text("utf-8")))


def _conclude(settings: config.LadderConfig, file: Path, body: dict[str, Any]) -> None:
    """Print the verdict; as next steps, one more level if the last one helped, and a chat with policy and start."""
    from afzal.cli.conclusion import print_conclusion
    from afzal.terminal.conclusion import step
    from afzal.text import sign

    gain = body["differences"][settings.levels - 1]
    steps = []
    if sign(gain) > 0:
        more = (f"levels={settings.levels + 1}", f"out={settings.out}")
        steps.append(step("ladder", file, *more, why="the last level helped; one more"))
    policy = f"{settings.out}/level-{settings.levels}/policy"
    steps.append(
        step("chat", policy, "--against", settings.model, "--blind", why="which one do you prefer? vote blind")
    )
    print_conclusion(body["findings"][0], steps)
