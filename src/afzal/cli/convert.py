"""``afzal convert IN OUT --to FORMAT``: the same preferences in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afzal.api.inspecting import Layout
from afzal.cli.check import Columns, FormatName, MaxUnpacked, MediaFolder, SkipBad, parse_columns
from afzal.cli.conclusion import print_conclusion
from afzal.terminal.conclusion import step


def command(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder or hub id to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: JSON lines, gzip if it ends in .gz.")],
    to: Annotated[
        Layout,
        typer.Option(help="Layout to write: one row per pair, or per vote (alpaca_eval, fastchat); afzal is lossless."),
    ],
    columns: Columns = None,
    format: FormatName = None,
    skip_bad: SkipBad = False,
    max_unpacked: MaxUnpacked = 4,
    media_folder: MediaFolder = None,
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out rows that the layout cannot hold, and count them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write a data file in another layout, and list what the layout cannot hold. Exit 1 if rows were left out."""
    from afzal.api.inspecting import convert

    result = convert(
        source,
        target,
        to=to,
        columns=parse_columns(columns),
        format=format,
        skip_bad=skip_bad,
        max_unpacked=max_unpacked,
        media_folder=media_folder,
        skip=skip,
        force=force,
    )
    typer.echo(str(result))
    print_conclusion("", [step("check", target)])
    if not result.ok:
        raise typer.Exit(1)
