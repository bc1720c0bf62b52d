"""The script client: an idle connection that the server closed is opened again, and a vote counts once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from afzal.web.client import Client

BODIES: list[dict[str, Any]] = []


class Ending(BaseHTTPRequestHandler):
    """Answers one request per connection and then closes it silently, as servers do with idle connections."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        BODIES.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        reply = b'{"state": "done"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    made = HTTPServer(("127.0.0.1", 0), Ending)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/a/token/"
    made.shutdown()
    made.server_close()


def test_a_connection_that_idled_is_opened_again(server: str) -> None:
    BODIES.clear()
    client = Client(server, timeout=5)
    for _ in range(3):
        assert client.undo() == {"state": "done"}
    client.close()
    assert len(BODIES) == 3
    assert len({body["id"] for body in BODIES}) == 3


def test_a_server_that_is_not_there_is_an_error_at_once(server: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        Client("http://127.0.0.1:9/a/token/", timeout=2).undo()
