"""``afzal revise``: preference pairs from principles."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.conclusion import print_conclusion, ways_to_learn
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal.conclusion import MODEL, step


def _revise(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False, **flags: Any
) -> None:
    """Make preference pairs from principles: answer, critique, revision, or two answers and a judge's label.

    Run the same command again to resume. Writes pairs.jsonl, which is ready for training, and revise.html.
    """
    settings = config.build(config.ReviseConfig, given(config.ReviseConfig, flags))
    displayed = (
        settings if settings.url is None else settings.model_copy(update={"model": f"{settings.url}:{settings.model}"})
    )
    startup.begin(displayed, f"pairs from the principles of {settings.principles}")
    from afzal.api.answers import run_revision
    from afzal.text import plural

    result = run_revision(settings, say=lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(result.body, indent=1, ensure_ascii=False) if as_json else str(result))
    if not result.ok:
        raise typer.Exit(1)
    if not as_json:
        pairs = f"{settings.out}/pairs.jsonl"
        training = ways_to_learn(pairs, model=settings.model if settings.url is None else MODEL)
        print_conclusion(f"{pairs}: {plural(result['pairs'], 'pair')}", [step("check", pairs), *training])


command = with_parameters(_revise, parameters(config.ReviseConfig, panel="Options"))
