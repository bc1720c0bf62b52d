"""Replies of a stand-in for an OpenAI-compatible server."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


def send_reply(handler: BaseHTTPRequestHandler, said: str, **more: Any) -> None:
    """Answer a request with one finished message; ``more`` adds other fields, such as ``usage``."""
    reply = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], **more}
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps(reply).encode())
