"""A script that answers in place of a person: a client of the page's API (docs/annotate.md), standard library only."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any
from urllib.parse import urlsplit

from afzal.errors import AfzalError


def parse_addresses(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Names (``-`` for no name yet) and addresses, as ``afzal annotate`` prints them before it serves."""
    printed = takewhile(lambda line: line.strip(), lines)
    return [(name, address) for name, _, address in (line.strip().partition("\t") for line in printed)]


class Client:
    """One annotator's connection.

    Args:
        address: as printed by ``afzal annotate --headless``: ``http://127.0.0.1:PORT/a/TOKEN/``.

    Every request raises ``AfzalError`` with the page's message if it is refused, and ``OSError`` if there is no server.
    """

    def __init__(self, address: str, timeout: float = 30.0) -> None:
        parts = urlsplit(address)
        self._token = parts.path.strip("/").rpartition("/")[2]
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)

    def about(self) -> dict[str, Any]:
        """Title, mode, axes, guideline and the annotator's name."""
        return self._request("GET", "/api/about")

    def sign_in(self, name: str) -> dict[str, Any]:
        """Give the address a name, if it has none."""
        return self._request("POST", "/api/sign-in", {"name": name})

    def next(self) -> dict[str, Any]:
        """The question to answer; ``state`` is ask, wait, done or sign_in."""
        return self._request("GET", "/api/next")

    def vote(self, question: Mapping[str, Any], **verdict: Any) -> dict[str, Any]:
        """Answer a question of :meth:`next`: ``outcome="first"``, ``groups=[[1], [0, 2]]`` or ``values=[3, 5]``.

        ``seconds``, ``note``, ``strength`` and ``id`` are optional. A lost request may be sent again with the same
        ``id``: it counts once.
        """
        return self._request("POST", "/api/vote", _answer(question) | verdict)

    def skip(self, question: Mapping[str, Any], reason: str) -> dict[str, Any]:
        """Skip a question: ``cannot_judge``, ``broken`` or ``offensive``."""
        return self._request("POST", "/api/skip", _answer(question) | {"reason": reason})

    def undo(self) -> dict[str, Any]:
        """Take the newest answer back."""
        return self._request("POST", "/api/undo", {"id": new_id()})

    def close(self) -> None:
        self._connection.close()

    def _exchange(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, path, body, dict(headers))
        reply = self._connection.getresponse()
        return reply, reply.read()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"X-Afzal-Token": self._token, "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body)
        try:
            try:
                reply, text = self._exchange(method, path, payload, headers)
            except (ConnectionError, http.client.BadStatusLine):  # the server closes idle connections
                self._connection.close()
                # a vote that is sent twice has one id, and counts once
                reply, text = self._exchange(method, path, payload, headers)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        answer = json.loads(text) if reply.getheader("content-type", "").startswith("application/json") else {}
        if reply.status != 200:
            what = answer.get("message") or text.decode("utf-8", "replace").strip()
            why = f"{reply.status} {answer.get('error', '')}".strip()
            raise AfzalError(f"the page refused {path}: {what}", why=why)
        return answer


def new_id() -> str:
    """A fresh id for a request."""
    return uuid.uuid4().hex


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": new_id(), "question": question["question"], "position": question["position"]}
