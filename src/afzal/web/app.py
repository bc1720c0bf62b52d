"""The annotation page over HTTP: routes, tokens, and answers that are on disk before they are acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from afzal.errors import AfzalError
from afzal.web.annotation import PendingReply, Reply
from afzal.web.folder import AnnotationFolder
from afzal.web.journal import Journal
from afzal.web.media import media_type
from afzal.web.replies import TOKEN, error_reply, json_reply, page_file, read_json_body, static, wrong_token
from afzal.web.validation import RequestError, parse_name


class CommitQueue:
    """Lines on their way to disk: those that arrive during one write share the next one.

    ``on_failure`` is called when a write fails, before anybody sees a confirmation and before anything else happens.
    """

    def __init__(self, journal: Journal, on_failure: Callable[[], None]) -> None:
        self._journal, self._on_failure = journal, on_failure
        self._waiting: list[tuple[list[Mapping[str, Any]], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, lines: list[Mapping[str, Any]]) -> None:
        """Return once these lines, and all lines added before, are on disk.

        Raises:
            AfzalError: the write failed.
        """
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((lines, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                lines = [line for group, _ in batch for line in group]
                if lines:
                    await asyncio.to_thread(self._journal.append, lines)
            except Exception as error:  # whatever it is, the waiting requests must get it
                batch, self._waiting = batch + self._waiting, []
                self._on_failure()
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                return
            for _, future in batch:
                if not future.done():
                    future.set_result(None)


class Page:
    """The routes over an open folder; ``on_finished`` is called when the last answer has been saved."""

    def __init__(self, folder: AnnotationFolder, on_finished: Callable[[], None]) -> None:
        self._folder, self._on_finished = folder, on_finished
        self._commits = CommitQueue(folder.journal, folder.reopen)

    def routes(self) -> list[Route]:
        post, get = ["POST"], ["GET"]
        return [
            Route("/a/{token}/", self.page, methods=get),
            Route("/static/{name}", static, methods=get),
            Route("/media/{token}/{key}", self.media, methods=get),
            Route("/api/about", self._api(self.about), methods=get),
            Route("/api/next", self._api(self.next), methods=get),
            Route("/api/sign-in", self._api(self.sign_in), methods=post),
            Route("/api/vote", self._api(self._action("vote")), methods=post),
            Route("/api/skip", self._api(self._action("skip")), methods=post),
            Route("/api/undo", self._api(self._action("undo")), methods=post),
            Route("/api/leave", self._api(self.leave), methods=post),
        ]

    async def page(self, request: Request) -> Response:
        """The page itself; a wrong token sees nothing."""
        if self._folder.name_of(request.path_params["token"]) is None:
            raise HTTPException(404)
        return page_file("page.html")

    async def media(self, request: Request) -> Response:
        """An image or a sound of the rows, in full or a byte range of it."""
        path = self._folder.library.find(request.path_params["key"])
        if path is None or self._folder.name_of(request.path_params["token"]) is None:
            raise HTTPException(404)
        return FileResponse(path, media_type=media_type(path))

    async def about(self, request: Request, token: str, name: str) -> Reply:
        return {"annotator": name, **self._folder.session.about()}

    async def next(self, request: Request, token: str, name: str) -> Reply:
        if not name:
            return {"state": "sign_in"}
        query = request.query_params
        return self._folder.session.next(name, query.get("tab"), take_over=query.get("take") == "1")

    async def sign_in(self, request: Request, token: str, name: str) -> Reply:
        new_name = parse_name(await read_json_body(request))
        if name and name != new_name:
            raise RequestError(409, "named", f"this address belongs to {name}")
        if not name and not self._folder.sign_in(token, new_name):
            raise RequestError(409, "name_taken", "this name is taken: choose another one")
        return {"annotator": new_name}

    async def leave(self, request: Request, token: str, name: str) -> Reply:
        return self._folder.session.leave(name, str((await read_json_body(request)).get("tab")))

    def _action(self, verb: str) -> Callable[[Request, str, str], Awaitable[Reply]]:
        async def handle(request: Request, token: str, name: str) -> Reply:
            body = await read_json_body(request)
            if not name:
                raise RequestError(409, "sign_in", "enter a name first")
            pending: PendingReply = getattr(self._folder.session, verb)(name, body)
            await self._commit(pending)
            if pending.reply["next"]["state"] == "done" and self._folder.session.queue.is_done():
                self._on_finished()
            return pending.reply

        return handle

    async def _commit(self, pending: PendingReply) -> None:
        """Wait for the disk even if there is nothing new: a repeated request must not overtake the first one."""
        try:
            await self._commits.add(list(pending.lines))
        except AfzalError as error:
            raise RequestError(503, "not_saved", f"the answer was not saved: {error.why or error.what}") from error

    def _api(self, handle: Callable[[Request, str, str], Awaitable[Reply]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            token = request.headers.get(TOKEN, "")
            name = self._folder.name_of(token)
            if name is None:
                return wrong_token()
            try:
                return json_reply(await handle(request, token, name))
            except RequestError as error:
                return error_reply(error)

        return endpoint


def application(folder: AnnotationFolder, on_finished: Callable[[], None] = lambda: None) -> Starlette:
    """The page as an ASGI application, without the :class:`afzal.web.security.Guard` around it.

    ``on_finished`` is called when the last answer has been saved, just before its reply is sent.
    """
    return Starlette(routes=Page(folder, on_finished).routes())
