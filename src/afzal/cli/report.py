"""``afzal report``: write the page of a run again, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 unless the curves are healthy.")] = False,
) -> None:
    """Write report.html and report.json of a run; print where the page is, the next command, and the verdict."""
    from afzal import report

    page = report.build(run)
    typer.echo(str(page))
    judged = conclude(page)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    if strict and judged["severity"] != "good":
        raise typer.Exit(1)


def conclude(page: Path) -> dict[str, Any]:
    """Print the command to run next, and as the last line the verdict, which is returned."""
    import json

    body = json.loads(page.with_suffix(".json").read_text("utf-8"))
    judged: dict[str, Any] = body["verdict"]
    typer.echo(f"next: {body['next']}")
    typer.echo(f"{judged['word']}: {judged['sentence']}")
    return judged
