"""``afzal board``: the runs in a folder, in the browser."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from afzal import config
from afzal.cli.flags import given, parameters, with_parameters


def _board(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder with runs.")] = ".",
    **flags: Any,
) -> None:
    """Show the runs in a folder in the browser: state, key figures, live curves, and links to their pages.

    The page follows runs while they train and is read-only. Ctrl-C ends it.
    """
    settings = config.build(
        config.BoardConfig, [config.Setting("folder", folder, "FOLDER"), *given(config.BoardConfig, flags)]
    )
    from afzal.api.inspecting import show_board

    show_board(settings)


_FLAGS = [p for p in parameters(config.BoardConfig, panel="Options") if p.name != "folder"]
command = with_parameters(_board, _FLAGS)
