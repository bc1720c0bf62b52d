"""``afzal convert IN OUT --to FORMAT``: the same opinions in another layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from afzal.cli.check import Columns, FormatName, MaxUnpacked, MediaFolder, SkipBad, parse_columns
from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.records import Media


def command(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder or hub id to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: JSON lines, gzip if it ends in .gz.")],
    to: Annotated[
        Literal["trl", "conversational", "openai", "afzal", "alpaca_eval", "fastchat"],
        typer.Option(help="Layout to write: a row per pair, or per vote (alpaca_eval, fastchat); afzal loses nothing."),
    ],
    columns: Columns = None,
    format: FormatName = None,
    skip_bad: SkipBad = False,
    max_unpacked: MaxUnpacked = 4,
    media_folder: MediaFolder = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out what the layout cannot hold, and count it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Write a data file in another layout; says what the layout has no place for. Exit 1 when rows were left out."""
    from afzal import data
    from afzal.records import media_of

    if target.exists() and not force:
        raise AfzalError(f"{target} exists", remedy="choose another name, or pass --force")
    on_error = "drop" if skip_bad else "raise"
    most = int(max_unpacked * 2**30)
    rules, named = data.MediaRules(folder=media_folder or ""), parse_columns(columns)
    dataset = data.read(source, columns=named, format=format, on_error=on_error, max_unpacked=most, media=rules)
    made = data.plan(dataset.items, to)
    rows = data.write(dataset.items, target, to, skip_unholdable=skip)
    typer.echo(f"{target}: {rows} rows as {to}, from {dataset.kept} of {dataset.rows} rows read as {dataset.format}")
    for name, n in made.left_out.most_common():
        typer.echo(f"not in this layout: {name} ({n} items)")
    for reason, n in (Counter(dataset.drop_counts) + Counter(drop.reason for drop in made.skipped)).most_common():
        typer.echo(f"left out: {reason} {n}")
    if away := sum(_lies_elsewhere(media, target) for item in dataset.items for media in media_of(item)):
        typer.echo(f"{away} media lie outside the folder of {target.name}: read it with --media-folder FOLDER")
    if dataset.drops or made.skipped:
        raise typer.Exit(1)


def _lies_elsewhere(media: Media, target: Path) -> bool:
    return bool(media.path) and not Path(media.path).is_relative_to(target.expanduser().resolve().parent)
