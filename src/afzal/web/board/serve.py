"""The process that serves a board."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from afzal.web.board.app import application
from afzal.web.serve import Place, bound, origin, run_server


def serve(root: Path, place: Place, ready: Callable[[str], None]) -> None:
    """Serve the runs below a folder until SIGINT or SIGTERM.

    Args:
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    token = secrets.token_urlsafe(18)
    with bound(place) as sock:
        address = f"{origin(place.host, sock.getsockname()[1])}/b/{token}/"
        run_server(application(root, token), place, sock, lambda end: ready(address))
