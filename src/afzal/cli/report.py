"""``afzal report``: rebuild a run's page from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless the curves are healthy.")] = False,
) -> None:
    """Write report.html and report.json of a run; print the path of the page, the verdict, and the next commands."""
    from afzal import report

    page = report.build(run)
    typer.echo(str(page))
    outcome = conclude(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    if strict and outcome["severity"] != "good":
        raise typer.Exit(1)


def conclude(page: Path) -> Mapping[str, Any]:
    """Print the verdict and the commands that make sense next; return the verdict."""
    from afzal.api.inspecting import conclusion

    outcome, lines = conclusion(page)
    for line in lines:
        typer.echo(line)
    return outcome


def ended(folder: Path) -> None:
    """Print where the page of a finished run is, and how the run went; on the first rank only."""
    from afzal.runs import torchrun

    if torchrun.global_rank():
        return
    page = folder / "report.html"
    typer.echo(f"report: {page}")
    if page.exists():
        conclude(page)
