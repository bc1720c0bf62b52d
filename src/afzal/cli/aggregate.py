"""``afzal aggregate``: how far annotators agree, and one preference per pair from all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from afzal.cli.check import Columns, FormatName, SkipBad, parse_columns
from afzal.errors import AfzalError


def command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rows with votes, or a file of verdicts.")],
    by: Annotated[
        Literal["mean", "majority", "dawid_skene", "gold"],
        typer.Option(help="mean gives soft labels; gold weighs annotators by rows of known truth."),
    ] = "mean",
    gold: Annotated[
        str | None, typer.Option(help="Rows of known truth: the same prompts and responses, in any format.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the rows with one preference per pair, as Afzal rows.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Folder for the report as a page, drawing, CSV and JSON.")] = None,
    columns: Columns = None,
    format: FormatName = None,
    skip_bad: SkipBad = False,
    resamples: Annotated[int, typer.Option(min=2, help="Resamples of whole prompts, for the intervals.")] = 1000,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT even if it exists, or if the answer is doubtful.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report the agreement of annotators, then make one preference per pair of their votes.

    Says when aggregation changes nothing, and refuses an unsupervised answer that contradicts the majority (exit 1).
    """
    from afzal import data
    from afzal.judge import aggregate, annotators, labels

    if out is not None and out.exists() and not force:
        raise AfzalError(f"{out} exists", remedy="choose another name, or pass --force")
    from afzal import judge

    if out is None and gold is None and columns is None and format is None and judge.knows(source):
        dataset, said = None, labels.of_verdicts(judge.read([source]))
    else:
        dropping = "drop" if skip_bad else "raise"
        dataset = data.read(source, columns=parse_columns(columns), format=format, on_error=dropping)
        said = labels.of_items(dataset.items, data.read(gold).items if gold else ())
    agreed = annotators.agreement_of(said, resamples=resamples)
    people = annotators.people_of(said, resamples=resamples)
    found = aggregate.aggregate(said, by)
    body = annotators.as_plain(said, agreed, people, Path(source).name)
    body["findings"] += found.warnings
    body |= {"by": by, "moved": found.moved, "decided": found.decided, "doubtful": found.doubtful}
    if page is not None:
        from afzal import report

        report.write_board(page, body, "annotators")
    if as_json:
        typer.echo(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_text(body)))
    if by == "dawid_skene" and found.doubtful and not force:
        raise typer.Exit(1)
    if out is not None and dataset is not None:
        rows = data.write(aggregate.as_items(dataset.items, said, found, by), out, "afzal")
        if not as_json:
            typer.echo(f"{out}: {rows} rows by {by}")


def _text(body: Mapping[str, Any]) -> list[str]:
    from afzal.report.text import interval, number, visible

    lines = [visible(f"{body['title']}: {body['subtitle']}")]
    lines.append("  ".join(f"{name} {value}" for name, value in body["facts"]))
    width = max((len(f["name"]) for f in body["figures"]), default=0)
    for f in body["figures"]:
        lines.append(f"{visible(f['name']):{width}}  {number(f['value'], 3)} {interval(f['low'], f['high'])}".rstrip())
    width = max(len(visible(line["name"])) for line in body["lines"])
    for line in body["lines"]:
        cells = [f"{visible(line['name']):{width}}", f"labels {line['labels']}"]
        if line["value"] is not None:
            shown = interval(line["low"], line["high"])
            cells.append(f"agrees with the others {number(line['value'], 3)} {shown}".rstrip())
        cells += [f"{key.replace('_', ' ')} {number(line[key], 3)}" for key in _KNOWN if line[key] is not None]
        lines.append("  ".join(cells))
    return [*lines, *map(visible, body["findings"])]


_KNOWN = ("right", "first_slot", "first_slot_p", "consistent", "seconds")
