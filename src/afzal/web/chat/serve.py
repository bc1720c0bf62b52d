"""The process that serves the page of a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from afzal.web.chat.app import application
from afzal.web.chat.session import Session
from afzal.web.serve import Place, serve_secret


def serve(session: Session, about: Mapping[str, Any], place: Place, ready: Callable[[str], None]) -> None:
    """Serve a conversation until SIGINT or SIGTERM.

    Args:
        about: what the page says of the models and how they draw.
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    serve_secret("c", lambda token: application(session, token, about), place, ready)
