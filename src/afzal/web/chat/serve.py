"""The process that serves the chat page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from afzal.web.chat.app import ATTACH, application
from afzal.web.chat.attachments import LARGEST_FILE
from afzal.web.chat.session import Session
from afzal.web.serve import ServerOptions, serve_secret


def serve(session: Session, page_info: Mapping[str, Any], options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Serve a conversation until SIGINT or SIGTERM.

    Args:
        page_info: what the page says about the models and their sampling.
        ready: called with the address once the page can be reached.

    Raises:
        AfzalError: the address cannot be bound.
    """
    with TemporaryDirectory(prefix="afzal-chat-") as folder:
        serve_secret(
            "c",
            lambda token: application(session, token, page_info, Path(folder)),
            options,
            ready,
            uploads={ATTACH: LARGEST_FILE},
        )
