"""``afzal annotate``: a page on which people vote by keyboard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters
from afzal.errors import AfzalError
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
    from afzal import data
    from afzal.api.asking import job_of
    from afzal.web.serve import Place, serve

    data.refuse_missing(settings.data)
    if settings.export is not None and not Path(settings.export).absolute().parent.is_dir():
        raise AfzalError(f"{Path(settings.export).parent} is not a folder", where="--export", remedy="create it first")
    if settings.export is not None and _same_file(settings.export, settings.data, settings.gold):
        raise AfzalError(f"{settings.export} is what the page reads", where="--export", remedy="choose another file")
    job = job_of(settings)
    place = Place(settings.host, settings.port, tuple(settings.names or ()))

    def ready(folder: Folder, addresses: list[tuple[str, str]]) -> None:
        _tell(folder, addresses)
        if not settings.headless:
            _open(addresses)

    folder = serve(job, place, ready, "done" if settings.until_done else "stopped")
    counts = folder.desk.counts()
    typer.echo(f"{job.out}: {counts['votes']} votes, {counts['skips']} skips", err=True)
    if settings.export is not None:
        from afzal.web.export import export

        typer.echo(f"{settings.export}: {export(job.out, settings.export)} rows with votes", err=True)


def _same_file(path: str, *others: str | None) -> bool:
    return Path(path).exists() and any(o and Path(o).exists() and Path(path).samefile(o) for o in others)


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


def _open(addresses: list[tuple[str, str]]) -> None:
    import webbrowser

    webbrowser.open(addresses[0][1])


_FLAGS = [p for p in parameters(config.AnnotateConfig, panel="Options") if p.name != "data"]
command = with_parameters(_annotate, _FLAGS)
