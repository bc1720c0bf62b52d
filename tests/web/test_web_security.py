"""Requests that are refused before any route sees them."""

from __future__ import annotations

import asyncio

import pytest

from afzal.web.security import HEADERS, LARGEST_BODY, Guard, refusal_reason
from afzal.web.serve import ServerOptions, allowed_hosts, bind_socket

HOSTS = allowed_hosts(ServerOptions(), 8000)
FINE = {"host": "127.0.0.1:8000"}
WRITE = {**FINE, "content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/a/token/", FINE),
        ("GET", "/a/token/", {"host": "localhost:8000"}),
        ("GET", "/a/token/", {"host": "[::1]:8000"}),
        ("GET", "/a/token/", {**FINE, "sec-fetch-site": "none", "sec-fetch-mode": "navigate"}),
        ("GET", "/a/token/", {**FINE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),
        ("POST", "/api/vote", WRITE),
        ("POST", "/api/vote", {**WRITE, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}),
        ("POST", "/api/vote", {**WRITE, "content-length": str(LARGEST_BODY)}),
    ],
)
def test_the_pages_own_requests_pass(method, path, headers):
    assert refusal_reason(method, path, headers, HOSTS) is None


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/a/token/", {}, 421),
        ("GET", "/a/token/", {"host": "evil.example:8000"}, 421),
        ("GET", "/a/token/", {"host": "127.0.0.1:8001"}, 421),
        ("GET", "/a/token/", {"host": "127.0.0.1.evil.example:8000"}, 421),
        ("GET", "/a/token/", {"host": "0.0.0.0:8000"}, 421),
        ("POST", "/api/vote", {**WRITE, "host": "evil.example:8000", "origin": "http://evil.example:8000"}, 421),
        ("POST", "/api/vote", {**WRITE, "origin": "http://evil.example"}, 403),
        ("POST", "/api/vote", {**WRITE, "origin": "null"}, 403),
        ("POST", "/api/vote", {**WRITE, "origin": "http://127.0.0.1:9999"}, 403),
        ("POST", "/api/vote", {**WRITE, "sec-fetch-site": "cross-site"}, 403),
        ("POST", "/api/vote", {**WRITE, "sec-fetch-site": "same-site"}, 403),
        ("GET", "/api/next", {**FINE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("GET", "/media/0/0", {**FINE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/static/page.js", {**FINE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("POST", "/api/vote", FINE, 415),
        ("POST", "/api/vote", {**FINE, "content-type": "text/plain"}, 415),
        ("POST", "/api/vote", {**WRITE, "content-length": str(LARGEST_BODY + 1)}, 413),
        ("POST", "/api/vote", {**WRITE, "content-length": "-1"}, 413),
        ("DELETE", "/api/vote", WRITE, 405),
        ("OPTIONS", "/api/vote", WRITE, 405),
        ("GET", "/a/" + "x" * 3000, FINE, 414),
    ],
)
def test_others_do_not(method, path, headers, status):
    assert refusal_reason(method, path, headers, HOSTS)[0] == status


UPLOADS = {"/api/attach": 10 * LARGEST_BODY}
FILE = {**FINE, "content-type": "application/octet-stream"}


def test_only_a_route_for_files_takes_bytes_and_large_bodies():
    large = {"content-length": str(2 * LARGEST_BODY)}
    assert refusal_reason("POST", "/api/attach", {**FILE, **large}, HOSTS, UPLOADS) is None
    assert refusal_reason("POST", "/api/attach", {**FILE, **large}, HOSTS)[0] == 415
    assert refusal_reason("POST", "/api/vote", FILE, HOSTS, UPLOADS)[0] == 415
    assert refusal_reason("POST", "/api/vote", {**WRITE, **large}, HOSTS, UPLOADS)[0] == 413
    assert refusal_reason("POST", "/api/attach", WRITE, HOSTS, UPLOADS)[0] == 415
    assert refusal_reason("POST", "/api/attach", {**FINE, "content-type": "image/png"}, HOSTS, UPLOADS)[0] == 415
    assert refusal_reason("POST", "/api/attach", {**FILE, "origin": "http://evil.example"}, HOSTS, UPLOADS)[0] == 403
    beyond = {"content-length": str(10 * LARGEST_BODY + 1)}
    assert refusal_reason("POST", "/api/attach", {**FILE, **beyond}, HOSTS, UPLOADS)[0] == 413


def run(app, scope, chunks=()):
    """Status, headers and body of an ASGI request."""
    sent, waiting = [], [*chunks]

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent[1:])


def scope(method="GET", path="/a/t/", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw}


async def echo(scope, receive, send):
    """Counts the body's bytes."""
    size, ended = 0, "whole"
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            ended = "cut"
            break
        size += len(message["body"])
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{size} {ended}".encode()})


def test_every_reply_carries_the_headers_refusals_too():
    guard = Guard(echo, HOSTS)
    for sent in (scope(host="evil.example"), scope(host="localhost:8000")):
        _, headers, _ = run(guard, sent, [{"type": "http.request", "body": b""}])
        assert HEADERS.items() <= headers.items()
    assert "unsafe" not in HEADERS["content-security-policy"]
    assert "http" not in HEADERS["content-security-policy"]


def test_a_body_without_a_stated_length_is_bounded():
    guard = Guard(echo, HOSTS)
    chunk = {"type": "http.request", "body": b"x" * 1000, "more_body": True}
    sent = scope("POST", "/api/vote", host="localhost:8000", content_type="application/json")
    assert run(guard, sent, [chunk] * 100)[2] == f"{LARGEST_BODY // 1000 * 1000} cut".encode()
    assert run(guard, sent, [chunk, {"type": "http.request", "body": b"y"}])[2] == b"1001 whole"
    upload = scope("POST", "/api/attach", host="localhost:8000", content_type="application/octet-stream")
    cut = f"{10 * LARGEST_BODY // 1000 * 1000} cut".encode()
    assert run(Guard(echo, HOSTS, UPLOADS), upload, [chunk] * 1000)[2] == cut


def test_a_refused_request_reaches_nothing():
    async def never(scope, receive, send):
        raise AssertionError

    assert run(Guard(never, HOSTS), scope(host="evil.example"))[0] == 421


def test_the_default_place_is_the_loopback():
    with bind_socket(ServerOptions()) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_a_proxys_name_is_answered_when_it_is_named():
    assert "annotate.example" not in HOSTS
    assert {"annotate.example", "annotate.example:8000"} <= allowed_hosts(
        ServerOptions(names=("Annotate.example",)), 8000
    )
    assert not any("0.0.0.0" in host for host in allowed_hosts(ServerOptions(host="0.0.0.0"), 8000))
