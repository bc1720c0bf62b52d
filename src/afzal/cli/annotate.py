"""``afzal annotate``: a page on which people vote by keyboard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters
from afzal.terminal import one_line

if TYPE_CHECKING:
    from afzal.web.folder import Folder


def _annotate(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Rows to ask about.")],
    **flags: Any,
) -> None:
    """Serve a page on which people compare, rank or rate the responses of a file, by keyboard.

    Every vote is on the disk before the next question shows. The same command resumes; Ctrl-C ends it.
    """
    settings = config.build(
        config.AnnotateConfig, [config.Setting("data", source, "FILE"), *given(config.AnnotateConfig, flags)]
    )
    from afzal.api.asking import annotated

    for line in annotated(settings, _tell).lines:
        typer.echo(line, err=True)


def _tell(folder: Folder, addresses: list[tuple[str, str]]) -> None:
    """Facts on stderr, addresses on stdout: one line each, ``NAME<tab>ADDRESS``, and an empty line after the last."""
    sheet = folder.sheet
    gold = sum(bool(item.gold) for item in sheet.items)
    known = f", {gold} of them of known truth" if gold else ""
    asked = f"{len(sheet.questions)} questions ({sheet.mode})"
    typer.echo(f"{len(sheet.items)} rows{known}, {asked}: {folder.path}", err=True)
    for reason, count in folder.drops.items():
        typer.echo(f"left out: {reason} {count}", err=True)
    typer.echo("".join(f"{one_line(name) or '-'}\t{address}\n" for name, address in addresses))
    sys.stdout.flush()


_FLAGS = [p for p in parameters(config.AnnotateConfig, panel="Options") if p.name != "data"]
command = with_parameters(_annotate, _FLAGS)
