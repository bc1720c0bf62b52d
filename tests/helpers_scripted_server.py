"""A server with scripted answers, and helpers for the tests that use it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afzal.servers import client


class Scripted(ThreadingHTTPServer):
    """A server that answers ``said N`` to seed N; the faults in ``plan`` come first for each question."""

    def __init__(self) -> None:
        self.plan: list[str] = []
        self.seen: list[tuple[str, dict[str, Any], str]] = []
        self.prompt_tokens = 0
        self.finish = "stop"
        self.answers_as: str | None = None
        self.stop_after: int | None = None
        self.most_at_once = self._at_once = 0
        self.says: Callable[[dict[str, Any]], str] = lambda body: f"said {body.get('seed')}"
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.seen]


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script = self.server
        with script.lock:
            script.seen.append((self.path, body, self.headers.get("authorization", "")))
            script._at_once += 1
            script.most_at_once = max(script.most_at_once, script._at_once)
            step = script.plan.pop(0) if script.plan else "ok"
            if script.stop_after is not None and len(script.seen) > script.stop_after:
                step = "401"
        self._reply(step, body)
        with script.lock:
            script._at_once -= 1

    def _reply(self, step: str, body: dict[str, Any]) -> None:
        script = self.server
        text = script.says(body)
        choice = {"message": {"content": text}} if "messages" in body else {"text": text}
        usage = {"prompt_tokens": script.prompt_tokens, "completion_tokens": 7}
        good = {"choices": [choice | {"finish_reason": script.finish}], "usage": usage}
        sent = json.dumps(good | {"model": script.answers_as or body["model"]}).encode()
        if step == "cut":
            sent = sent[: len(sent) // 2]
        if step == "html":
            sent = b"<html>Bad gateway</html>"
        if step == "open":
            sent = json.dumps({"choices": [choice | {"finish_reason": None}]}).encode()
        self.send_response(int(step) if step.isdigit() else 200)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted() -> Iterator[Scripted]:
    """The server, running until the end of the block."""
    running = Scripted()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()


def wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits between tries of a request, which other tests count."""
    start = client.Server.__init__
    assert start.__defaults__ is not None
    quick = tuple((lambda seconds: None) if d is time.sleep else d for d in start.__defaults__)
    monkeypatch.setattr(start, "__defaults__", quick)


def server_file(path: Path, script: Any, **given: Any) -> str:
    url = script if isinstance(script, str) else script.url
    path.write_text(json.dumps({"url": url, "model": "m", **given}))
    return str(path)
