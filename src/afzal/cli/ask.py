"""``afzal ask``: which pairs of answers to ask people about next."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal import config
from afzal.cli import start
from afzal.cli.flags import given, parameters, with_parameters
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.quality.ask import Scored
    from afzal.records import Item


NOBODY = "nobody"  # votes: those that the pool has are skipped


def _ask(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="Rows with two responses or more, in any format.")],
    n: Annotated[str | None, typer.Option("--n", "-n", help="Questions. Default 100.", metavar="INTEGER")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the questions even if the file exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **flags: Any,
) -> None:
    """Choose the pairs that people should be asked about next, and write them as rows for afzal annotate.

    Each row says why in extra.asked: the rule and its score. A share is always drawn at random.
    """
    settings = [config.Setting("data", pool, "POOL", typed=True), *given(config.AskConfig, flags | {"n": n})]
    made = config.build(config.AskConfig, settings)
    out = Path(made.out)
    if out.exists() and not force:
        raise AfzalError(f"{out} exists", remedy="choose another name with --out, or pass --force")
    start.refuse_missing(made)
    from afzal import data
    from afzal.quality import ask

    read = data.read(made.data, columns=made.columns or None, format=made.data_format)
    ours = _scored(made, ask.together(read.items))
    theirs = None
    if made.votes is not None:
        theirs = ask.Scored(()) if made.votes == NOBODY else _scored(made, ask.together(data.read(made.votes).items))
    seeds = made.seeds if made.curve else 0
    how = ask.How(made.data, made.by, made.n, made.random, made.ridge, made.seed, seeds, made.labels, made.axis)
    asked = ask.ask(ours, theirs, how)
    for warning in asked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if asked.rows:
        data.write(asked.rows, out, "afzal")
    if as_json:
        typer.echo(json.dumps(asked.plain | {"out": str(out) if asked.rows else None}, indent=1, ensure_ascii=False))
        return
    typer.echo("\n".join(asked.lines))
    if asked.rows:
        typer.echo(f"{out}: show them with: afzal annotate {out}")


def _scored(made: config.AskConfig, items: Sequence[Item]) -> Scored:
    """The rows with what the rule goes by; only models load torch."""
    from afzal.quality import ask

    if made.scorers or made.features not in (None, "words", "rows"):
        from afzal.recipes.ask import scored

        return scored(made, items)
    return ask.with_row_features(items) if made.features == "rows" else ask.Scored(items)


command = with_parameters(
    _ask, [p for p in parameters(config.AskConfig, panel="Options") if p.name not in ("data", "n")]
)
