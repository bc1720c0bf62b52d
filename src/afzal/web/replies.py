"""Replies and bodies that all pages share: JSON, the files of the pages, and refusals."""

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
from afzal.web.bodies import Refused

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
TOKEN = "x-afzal-token"
Handle: TypeAlias = Callable[[Request], Awaitable[Response]]


def as_json(value: Any, status: int = 200) -> Response:
    """JSON in ASCII: halves of surrogate pairs, which texts may hold, have no UTF-8."""
    return Response(json.dumps(value, allow_nan=False, default=str).encode(), status, media_type="application/json")


def refusal(refused: Refused) -> Response:
    """The reply to a request that is not carried out."""
    return as_json({"error": refused.code, "message": str(refused)}, refused.status)


def is_right(token: str, known: str) -> bool:
    """Whether a token is the known one; how long it takes says nothing of how alike they are."""
    return secrets.compare_digest(token.encode(), known.encode())


def with_token(known: str, handle: Handle) -> Handle:
    """An endpoint for data: it takes the token in a header, and says in JSON why it refuses."""

    async def endpoint(request: Request) -> Response:
        if not is_right(request.headers.get(TOKEN, ""), known):
            return wrong_token()
        try:
            return await handle(request)
        except Refused as refused:
            return refusal(refused)
        except AfzalError as error:
            return refusal(Refused(409, "refused", str(error)))

    return endpoint


def wrong_token() -> Response:
    """The reply to a request whose token is not known."""
    return as_json({"error": "token", "message": "this address is not, or no longer, valid"}, 401)


async def static(request: Request) -> Response:
    """A file of the pages; only names that stand there are served."""
    return page_file(request.path_params["name"])


def page_file(name: str) -> Response:
    """A file of the pages by its name; 404 for any other."""
    if name not in _FILES:
        raise HTTPException(404)
    return Response(_FILES[name], media_type=TYPES[Path(name).suffix])


_FILES = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}


async def body_of(request: Request) -> Mapping[str, Any]:
    """The JSON object that a request carries.

    Raises:
        Refused: it is too large, or not a JSON object.
    """
    try:
        body = json.loads(await request.body())
    except ClientDisconnect:
        raise Refused(413, "too_large", "the body is too large") from None
    except (ValueError, RecursionError):
        raise Refused(400, "not_json", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "not_json", "the body is not a JSON object")
    return body
