"""Replies and request bodies for all pages: JSON, static files and refusals."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from afzal.errors import AfzalError
from afzal.web.validation import RequestError

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
TOKEN = "x-afzal-token"
Handle: TypeAlias = Callable[[Request], Awaitable[Response]]


def json_reply(value: Any, status: int = 200) -> Response:
    """A JSON reply, in ASCII: texts may contain lone surrogates, which UTF-8 cannot encode."""
    return Response(json.dumps(value, allow_nan=False, default=str).encode(), status, media_type="application/json")


def error_reply(error: RequestError) -> Response:
    """The reply to a refused request."""
    return json_reply({"error": error.code, "message": str(error)}, error.status)


def is_same_token(token: str, secret: str) -> bool:
    """Whether a token is the known one, in constant time."""
    return secrets.compare_digest(token.encode(), secret.encode())


def with_token(secret: str, handle: Handle) -> Handle:
    """A data endpoint: it reads the token from a header, and gives the reason for a refusal as JSON."""

    async def endpoint(request: Request) -> Response:
        if not is_same_token(request.headers.get(TOKEN, ""), secret):
            return wrong_token()
        try:
            return await handle(request)
        except RequestError as error:
            return error_reply(error)
        except AfzalError as error:
            return error_reply(RequestError(409, "refused", str(error)))

    return endpoint


def wrong_token() -> Response:
    """The reply to a request with an unknown token."""
    return json_reply({"error": "token", "message": "this address is wrong or no longer valid"}, 401)


async def static(request: Request) -> Response:
    """A static file; any name that is not on the list gives 404."""
    return page_file(request.path_params["name"])


def page_file(name: str) -> Response:
    """A static file by name; 404 for any other name."""
    if name not in _FILES:
        raise HTTPException(404)
    return Response(_FILES[name], media_type=TYPES[Path(name).suffix])


_FILES = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}


async def read_body(request: Request) -> bytes:
    """The bytes of a request's body.

    Raises:
        RequestError: there are too many.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise RequestError(413, "too_large", "the body is too large") from None


async def read_json_body(request: Request) -> Mapping[str, Any]:
    """The JSON object in a request's body.

    Raises:
        RequestError: it is too large, or not a JSON object.
    """
    try:
        body = json.loads(await read_body(request))
    except (ValueError, RecursionError):
        raise RequestError(400, "not_json", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError(400, "not_json", "the body is not a JSON object")
    return body
