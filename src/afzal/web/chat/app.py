"""The chat page over HTTP: a stream of text while models answer, and votes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from afzal.data.media_copies import copy_medium
from afzal.media import Media, media_in
from afzal.web.chat.attachments import attachment
from afzal.web.chat.conversation import Answer, Round
from afzal.web.chat.session import Session
from afzal.web.media import media_type
from afzal.web.replies import (
    Handle,
    is_same_token,
    json_reply,
    page_file,
    read_body,
    read_json_body,
    static,
    with_token,
)
from afzal.web.validation import OUTCOMES, RequestError, parse_timing

ATTACH = "/api/attach"
"""The route that takes the bytes of a file."""

LONGEST_FILE_NAME = 200
_VERDICTS = (*OUTCOMES, "skip")


class Page:
    """The routes over a session.

    Args:
        token: the secret part of the page's address.
        page_info: given to the page as it is.
        folder: for the files of attached images and sounds.
    """

    def __init__(self, session: Session, token: str, page_info: Mapping[str, Any], folder: Path) -> None:
        self._session, self._token, self._page_info = session, token, dict(page_info)
        self._stop = Event()
        self._work: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # held while a vote is written: a second one, or a message, would be about it
        self._folder = folder
        self._files: dict[str, Path] = {}  # by SHA-256

    def routes(self) -> list[Route]:
        """The page and its data."""
        post, get = ["POST"], ["GET"]
        return [
            Route("/c/{token}/", self.page, methods=get),
            Route("/static/{name}", static, methods=get),
            Route("/media/{token}/{key}", self.media, methods=get),
            Route("/api/state", self._api(self.state), methods=get),
            Route("/api/tally", self._api(self.tally), methods=get),
            Route(ATTACH, self._api(self.attach), methods=post),
            Route("/api/detach", self._api(self.detach), methods=post),
            Route("/api/say", self._api(self._when_idle(self.say)), methods=post),
            Route("/api/stop", self._api(self.stop), methods=post),
            Route("/api/vote", self._api(self._when_idle(self.vote)), methods=post),
            Route("/api/undo", self._api(self._when_idle(self.undo)), methods=post),
            Route("/api/new", self._api(self._when_idle(self.new)), methods=post),
        ]

    async def page(self, request: Request) -> Response:
        """The page itself; a wrong token sees nothing."""
        if not is_same_token(request.path_params["token"], self._token):
            raise HTTPException(404)
        return page_file("chat.html")

    async def state(self, request: Request) -> Response:
        """The conversation so far."""
        return json_reply(self._state())

    async def media(self, request: Request) -> Response:
        """An attached image or sound, in full or a byte range of it."""
        path = self._files.get(request.path_params["key"])
        if path is None or not is_same_token(request.path_params["token"], self._token):
            raise HTTPException(404)
        return FileResponse(path, media_type=media_type(path))

    async def attach(self, request: Request) -> Response:
        """Attach the image or sound in the body to the next message; ``name`` in the query is the file's name."""
        name = request.query_params.get("name", "")[:LONGEST_FILE_NAME] or "the file"
        content = await read_body(request)
        attached = await asyncio.to_thread(attachment, content, name)
        self._session.conversation.check_readable(attached.media.kind)
        self._files[attached.media.sha256] = await asyncio.to_thread(copy_medium, attached.media, self._folder)
        self._session.attach(attached)
        return json_reply(self._state())

    async def detach(self, request: Request) -> Response:
        """Remove an image or a sound from the next message."""
        self._session.detach(str((await read_json_body(request)).get("media")))
        return json_reply(self._state())

    async def tally(self, request: Request) -> Response:
        """How often each model was better, with their names."""
        if self._session.votes is None:
            raise RequestError(409, "not_blind", "this chat has no votes")
        return json_reply(self._session.votes.tally())

    async def say(self, request: Request) -> Response:
        """The person's turn; the reply is a stream of JSON lines until every model has answered."""
        text = (await read_json_body(request)).get("text")
        if not isinstance(text, str):
            raise RequestError(400, "bad_text", "text must be a string")
        conversation = self._session.conversation
        self._session.say(text.encode("utf-8", "replace").decode())
        self._stop = Event()
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._work = asyncio.create_task(self._answers(len(conversation.partners), lines, self._stop))
        return StreamingResponse(self._stream(lines, self._stop), media_type="application/x-ndjson")

    async def stop(self, request: Request) -> Response:
        """Stop the answers that are being generated."""
        self._stop.set()
        return json_reply({"stopped": True})

    async def vote(self, request: Request) -> Response:
        """Record which place is better; the vote is on disk before the reply is sent."""
        body = await read_json_body(request)
        verdict, seconds = body.get("outcome"), parse_timing(body)["seconds"]
        if verdict not in _VERDICTS:
            raise RequestError(400, "bad_outcome", f"outcome must be one of {', '.join(_VERDICTS)}")
        await asyncio.to_thread(self._session.judge, verdict, seconds)
        return json_reply(self._state())

    async def undo(self, request: Request) -> Response:
        """Take the last vote of the conversation back."""
        if await asyncio.to_thread(self._session.undo) is None:
            raise RequestError(409, "nothing", "this conversation has no vote to undo")
        return json_reply(self._state())

    async def new(self, request: Request) -> Response:
        """Start a new conversation."""
        self._session.begin()
        return json_reply(self._state())

    async def _answers(self, places: int, lines: asyncio.Queue[dict[str, Any] | None], stop: Event) -> None:
        """Let all models answer in parallel, one thread each; then update the conversation, even if nobody listens."""
        conversation, loop = self._session.conversation, asyncio.get_running_loop()

        def send(line: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        def answer_place(place: int) -> None:
            answer = conversation.answer(
                place, lambda keep, text: send({"place": place, "keep": keep, "text": text}), stop
            )
            send({"place": place, "done": _answer(answer)})

        tasks = [asyncio.to_thread(answer_place, place) for place in range(places)]
        failed = [f for f in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(f, BaseException)]
        if failed:
            self._session.drop_round()
            lines.put_nowait({"error": str(failed[0])})
        else:
            conversation.close()
        lines.put_nowait({"state": self._state() | {"busy": False}})
        lines.put_nowait(None)

    async def _stream(self, lines: asyncio.Queue[dict[str, Any] | None], stop: Event) -> AsyncIterator[bytes]:
        try:
            while (line := await lines.get()) is not None:
                yield json.dumps(line, allow_nan=False).encode() + b"\n"
        finally:
            stop.set()  # nobody is listening any more

    def _state(self) -> dict[str, Any]:
        conversation, votes = self._session.conversation, self._session.votes
        names = (
            {"names": None} if conversation.is_blind else {"names": [partner.name for partner in conversation.partners]}
        )
        saved = 0 if votes is None else votes.count
        rounds = [_round(round_) for round_ in conversation.rounds]
        state = {
            "blind": conversation.is_blind,
            "places": len(conversation.partners),
            "waits": conversation.waits,
            "saved": saved,
            "reads": sorted(conversation.reads),
            "attached": [
                _medium(attachment.media) | {"summary": attachment.summary} for attachment in self._session.attached
            ],
        }
        return {**self._page_info, **names, **state, "rounds": rounds, "busy": self._is_busy()}

    def _is_busy(self) -> bool:
        return self._work is not None and not self._work.done()

    def _when_idle(self, handle: Handle) -> Handle:
        """An endpoint that changes the conversation: one at a time, and none while the models answer."""

        async def endpoint(request: Request) -> Response:
            await read_body(request)  # first, since a slow sender must not hold the lock
            async with self._turn:
                if self._is_busy():
                    raise RequestError(409, "busy", "the models are still answering")
                return await handle(request)

        return endpoint

    def _api(self, handle: Handle) -> Handle:
        return with_token(self._token, handle)


def _round(round_: Round) -> dict[str, Any]:
    """A round as the page shows it: answers by their place on the screen."""
    by_place = [round_.answers[number] for number in round_.shown]
    answers = [None if answer is None else _answer(answer) for answer in by_place]
    content = round_.prompts[0][-1].content
    media = [_medium(medium) for medium in media_in(content)]
    text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    return {"said": text, "media": media, "answers": answers, "judged": round_.verdict}


def _medium(media: Media) -> dict[str, Any]:
    return {"type": media.kind, "media": media.sha256, "name": media.name}


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "tokens": answer.tokens, "stop": answer.stop}


def application(session: Session, token: str, page_info: Mapping[str, Any], folder: Path) -> Starlette:
    """The page as an ASGI application, without the :class:`afzal.web.security.Guard` around it."""
    return Starlette(routes=Page(session, token, page_info, folder).routes())
