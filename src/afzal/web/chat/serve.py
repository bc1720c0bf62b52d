"""The process that serves the chat page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from afzal.web.chat.app import application
from afzal.web.chat.session import Session
from afzal.web.serve import ServerOptions, serve_secret


def serve(session: Session, about: Mapping[str, Any], options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Serve a conversation until SIGINT or SIGTERM.

    Args:
        about: what the page says about the models and their sampling.
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    serve_secret("c", lambda token: application(session, token, about), options, ready)
