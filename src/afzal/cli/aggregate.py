"""``afzal aggregate``: how far annotators agree, and one preference per pair from all their votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afzal.api.aggregating import By, LabelKind, aggregate
from afzal.cli.check import Columns, FormatName, SkipBad, parse_columns
from afzal.cli.conclusion import is_new, print_conclusion, ways_to_learn
from afzal.errors import AfzalError
from afzal.terminal.conclusion import step
from afzal.text import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from afzal.api.results import Result


def command(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rows with votes, or a file of verdicts.")],
    by: Annotated[
        By,
        typer.Option(
            help="mean gives soft labels, jeffreys soft labels that are never certain; gold weights annotators by "
            "their accuracy on known truth."
        ),
    ] = "mean",
    labels: Annotated[
        LabelKind, typer.Option(help="Labels in OUT: the probability, or the likelier answer with a weight.")
    ] = "soft",
    gold: Annotated[
        str | None, typer.Option(help="Rows of known truth: the same prompts and responses, in any format.")
    ] = None,
    gold_sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Measure how often the result is right with these numbers of known truths."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            help="Aggregate groups separately: found (detected from the votes), a .json or .csv of annotators, or a "
            "field of the rows."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write rows with one preference per pair to this file, as Afzal rows.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Folder for the report: page, figure, CSV and JSON.")] = None,
    columns: Columns = None,
    format: FormatName = None,
    skip_bad: SkipBad = False,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of whole prompts, for the intervals.")] = 1000,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT even if it exists, or if the result is doubtful.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report how far annotators agree, then combine their votes into one preference per pair, or one score per answer.

    Says if aggregation changes nothing, and refuses an unsupervised result that contradicts the majority (exit 1).
    """
    if labels != "soft" and out is None:
        raise AfzalError("no rows are written", where=f"--labels {labels}", remedy="give --out FILE")
    result = aggregate(
        source,
        by=by,
        labels=labels,
        gold=gold,
        gold_sizes=_numbers(gold_sizes),
        group_by=group_by,
        out=out,
        page=page,
        columns=parse_columns(columns),
        format=format,
        skip_bad=skip_bad,
        resamples=resamples,
        force=force,
    )
    if as_json:
        typer.echo(json.dumps(result.body, indent=1, ensure_ascii=False))
    else:
        typer.echo(str(result))
        _conclude(result, source, out, by, ctx.obj)
    if not result.ok:
        raise typer.Exit(1)


def _numbers(text: str | None) -> tuple[int, ...]:
    """Parse positive whole numbers separated by commas."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise AfzalError(
            f"{text!r} is not a list of numbers", where="--gold-sizes", remedy="such as --gold-sizes 10,20,40"
        )
    return tuple(map(int, parts))


def _conclude(result: Result, source: str, out: Path | None, by: By, typed: Sequence[str]) -> None:
    """Print whether the combined preferences can be used, and how."""
    if not result.ok:
        print_conclusion("doubtful: this result contradicts the majority, and was not written")
    elif (voted := sum(any(vote.weight > 0 for vote in row.votes) for row in result.rows)) == 0:
        print_conclusion("no row has an opinion that could train" if result.rows else "")
    elif out is None:
        place = f"{Path(source).name.partition('.')[0]}.{by}.jsonl"
        steps = [step(*typed, "--out", place, why="write them")] if is_new(place) else []
        verb = "has" if voted == 1 else "have"
        print_conclusion(f"{plural(voted, 'row')} {verb} one opinion by {by}; nothing was written", steps)
    else:
        has_pairs = result.body["kind"] == "pairs"
        print_conclusion("", [step("check", out), *(ways_to_learn(str(out)) if has_pairs else [])])
