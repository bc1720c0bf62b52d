"""``afzal board``: the runs below a folder in the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters
from afzal.errors import AfzalError


def _board(
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="Folder with runs; default: this one.")] = ".",
    **flags: Any,
) -> None:
    """Show the runs below a folder in the browser: state, key figures, live curves, and links to their pages.

    The page follows runs while they train. It only reads. Ctrl-C ends it.
    """
    settings = config.build(
        config.BoardConfig, [config.Setting("folder", folder, "FOLDER"), *given(config.BoardConfig, flags)]
    )
    root = Path(settings.folder)
    if not root.is_dir():
        raise AfzalError(
            f"there is no folder {root}", remedy="name the folder that holds your runs: afzal board FOLDER"
        )
    from afzal.web.board.serve import serve
    from afzal.web.serve import Place

    def ready(address: str) -> None:
        print(address)
        sys.stdout.flush()
        if not settings.headless:
            import webbrowser

            webbrowser.open(address)

    serve(root.resolve(), Place(settings.host, settings.port, tuple(settings.names or ())), ready)


_FLAGS = [p for p in parameters(config.BoardConfig, panel="Options") if p.name != "folder"]
command = with_parameters(_board, _FLAGS)
