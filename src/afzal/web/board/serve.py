"""The process that serves a board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from afzal.web.board.app import application
from afzal.web.serve import Place, serve_secret


def serve(root: Path, place: Place, ready: Callable[[str], None]) -> None:
    """Serve the runs in a folder until SIGINT or SIGTERM.

    Args:
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    serve_secret("b", lambda token: application(root, token), place, ready)
