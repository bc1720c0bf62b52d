"""The board over HTTP: the list of runs, the curves, and the pages in the folder. It writes nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from afzal.web.board import curves
from afzal.web.board.listing import Listing
from afzal.web.replies import is_same_token, json_reply, page_file, static, with_token
from afzal.web.validation import RequestError

SERVED = {".html": "text/html", ".svg": "image/svg+xml", ".png": "image/png"}
# Pages in the folder may come from anywhere: they run no scripts, load nothing and have no origin.
POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_MOST_NAMES = 12


def inside(root: Path, path: str) -> Path | None:
    """The file or folder at a relative path in ``root``; None if it is hidden, outside ``root``, or missing."""
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(part.startswith(".") or not part for part in parts if path != "."):
        return None
    try:
        target = (root / path).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return target if target.is_relative_to(root.resolve()) else None


class Board:
    """The routes over a folder; ``token`` is the secret part of its address."""

    def __init__(self, root: Path, token: str) -> None:
        self._root, self._token = root, token
        self._listing = Listing(root, time.monotonic)

    def routes(self) -> list[Route]:
        """The page, its data, and the files in the folder."""
        get = ["GET"]
        return [
            Route("/b/{token}/", self.page, methods=get),
            Route("/static/{name}", static, methods=get),
            Route("/f/{token}/{path:path}", self.file, methods=get),
            Route("/api/runs", with_token(self._token, self.runs), methods=get),
            Route("/api/curves", with_token(self._token, self.curves), methods=get),
        ]

    async def page(self, request: Request) -> Response:
        """The page itself; a wrong token sees nothing."""
        self._check(request)
        return page_file("board.html")

    async def file(self, request: Request) -> Response:
        """A page or a picture in the folder."""
        self._check(request)
        path = inside(self._root, request.path_params["path"])
        if path is None or path.suffix not in SERVED or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type=SERVED[path.suffix], headers={"content-security-policy": POLICY})

    async def runs(self, request: Request) -> Response:
        """All runs and pages, at most a second old."""
        body = await asyncio.to_thread(self._listing.body)
        return Response(body, media_type="application/json")

    async def curves(self, request: Request) -> Response:
        """The points of a run's metrics after a given place in its log."""
        query = request.query_params
        run = inside(self._root, query.get("run", ""))
        if run is None or not run.is_dir():
            raise RequestError(404, "no_run", "there is no such run")
        names = query.get("names", "").split(",")[:_MOST_NAMES]
        return json_reply(await asyncio.to_thread(curves.read, run, names, query.get("since", "")))

    def _check(self, request: Request) -> None:
        if not is_same_token(request.path_params["token"], self._token):
            raise HTTPException(404)


def application(root: Path, token: str) -> Starlette:
    """The board as an ASGI application, without the :class:`afzal.web.security.Guard` around it."""
    return Starlette(routes=Board(root, token).routes())
