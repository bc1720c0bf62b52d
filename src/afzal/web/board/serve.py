"""The process that serves a board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from afzal.web.board.app import application
from afzal.web.serve import ServerOptions, serve_secret


def serve(root: Path, options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Serve the runs in a folder until SIGINT or SIGTERM.

    Args:
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    serve_secret("b", lambda token: application(root, token), options, ready)
