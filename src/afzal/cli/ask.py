"""``afzal ask``: which pairs of answers to ask people about next."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli import startup
from afzal.cli.conclusion import print_conclusion
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal.conclusion import step
from afzal.text import plural


def _ask(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Rows with two or more responses, in any format.")],
    n: Annotated[
        str | None, typer.Option("--n", "-n", help="Number of questions. Default 100.", metavar="INTEGER")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the questions even if the file exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **flags: Any,
) -> None:
    """Choose the pairs that people should be asked about next, and write them as rows for afzal annotate.

    extra.asked of each row gives the reason: the rule and its score. A share is always drawn at random.
    """
    settings = [config.Setting("data", pool, "POOL", typed=True), *given(config.AskConfig, flags | {"n": n})]
    built = config.build(config.AskConfig, settings)
    startup.refuse_missing(built)
    from afzal.api.asking import choose_questions

    result = choose_questions(built, force)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps(result.body, indent=1, ensure_ascii=False))
        return
    typer.echo(str(result))
    if result.rows:
        print_conclusion(f"{built.out}: {plural(len(result.rows), 'question')}", [step("annotate", built.out)])


command = with_parameters(
    _ask, [p for p in parameters(config.AskConfig, panel="Options") if p.name not in ("data", "n")]
)
