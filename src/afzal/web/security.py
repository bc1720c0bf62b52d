"""Checks that every request must pass before any route sees it.

The page holds private texts and takes votes, and any site that the user visits can send requests to the loopback
address. So the Host header must name this server (otherwise a rebound DNS name of another site would count as "same
origin"), writes and the API must come from the page itself, and bodies are small.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 64 * 1024
LONGEST_PATH = 2048

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


NO_UPLOADS: Mapping[str, int] = {}


def refusal_reason(
    method: str, path: str, headers: dict[str, str], hosts: Collection[str], uploads: Mapping[str, int] = NO_UPLOADS
) -> tuple[int, str] | None:
    """Why a request is refused, as status and sentence; None if it passes.

    Args:
        headers: by lower-case name.
        hosts: allowed values of the Host header, in lower case.
        uploads: paths that take the bytes of a file instead of JSON, and its largest size.
    """
    if len(path) > LONGEST_PATH:
        return 414, "the address is too long"
    if headers.get("host", "").lower() not in hosts:
        return 421, "this server is not known by that name"
    if method not in ("GET", "HEAD", "POST"):
        return 405, "only GET and POST are supported"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() not in hosts:
        return 403, "requests from other sites are refused"
    site = headers.get("sec-fetch-site", "same-origin")
    opens_page = method in ("GET", "HEAD") and not path.startswith(("/api/", "/media/"))
    if site not in ("same-origin", "none") and not (opens_page and headers.get("sec-fetch-mode") == "navigate"):
        return 403, "requests from other sites are refused"
    # Browsers send either type to another site only after asking it.
    expected = "application/octet-stream" if path in uploads else "application/json"
    if method == "POST" and not headers.get("content-type", "").startswith(expected):
        return 415, f"a body must be {expected}"
    length, most = headers.get("content-length", "0"), uploads.get(path, LARGEST_BODY)
    if not length.isdecimal() or int(length) > most:
        return 413, f"a body may have at most {most} bytes"
    return None


class Guard:
    """An ASGI application that refuses requests with a :func:`refusal_reason`, limits bodies, and adds missing
    :data:`HEADERS` to replies.

    Args:
        uploads: paths that take the bytes of a file instead of JSON, and its largest size.
    """

    def __init__(self, app: App, hosts: Collection[str], uploads: Mapping[str, int] = NO_UPLOADS) -> None:
        self._app, self._hosts, self._uploads = app, hosts, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = refusal_reason(scope["method"], scope["path"], headers, self._hosts, self._uploads)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        most = self._uploads.get(scope["path"], LARGEST_BODY)
        await self._app(scope, _bounded(receive, most), _with_headers(send))


def _bounded(receive: Receive, most: int) -> Receive:
    """Disconnect once a body without a content length is too long."""
    n_read = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal n_read
        message = await receive()
        n_read += len(message.get("body", b""))
        return message if n_read <= most else {"type": "http.disconnect"}

    return bounded


_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", [])
            names = {name for name, _ in headers}  # a reply may have its own content policy
            message["headers"] = [*headers, *(header for header in _ENCODED if header[0] not in names)]
        await send(message)

    return send_with_headers


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = f"{sentence}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
