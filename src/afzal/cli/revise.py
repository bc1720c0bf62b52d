"""``afzal revise``: preference pairs from principles."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import start
from afzal.cli.flags import given, parameters, with_parameters


def _revise(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False, **flags: Any
) -> None:
    """Make preference pairs from principles: answer, critique, revision, or two answers and a judge's label.

    Run again, the same command resumes. Writes pairs.jsonl, which trains as it is, and revise.html.
    """
    settings = config.build(config.ReviseConfig, given(config.ReviseConfig, flags))
    named = (
        settings if settings.url is None else settings.model_copy(update={"model": f"{settings.url}:{settings.model}"})
    )
    start.begin(named, f"pairs from the principles of {settings.principles}")
    from afzal.principles.run import PAIRS, REPORT, revise
    from afzal.text import interval, number, visible

    found = revise(settings, say=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for figure in found["figures"]:
            ends = interval(figure["low"], figure["high"])
            typer.echo(f"{figure['name']}: {number(figure['value'], 3)} {ends}".rstrip())
        for line in found["findings"]:
            typer.echo(visible(line))
        typer.echo(f"page: {settings.out}/{REPORT}.html")
    if found["pairs"] == 0:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"next: afzal train dpo --data {settings.out}/{PAIRS} --model MODEL --out RUN")


command = with_parameters(_revise, parameters(config.ReviseConfig, panel="Options"))
