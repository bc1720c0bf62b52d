"""Sending many requests: only those missing from the cache, several concurrently, caching each reply on arrival."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afzal.servers.cache import TOO_LONG, Cache, Reply
from afzal.servers.client import TooLong
from afzal.text import time_left

Ask = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], Reply]
"""``(messages, sampling) -> reply``."""


_POLL = 0.5
"""Seconds between two checks for an interrupt: a signal that arrives just before a wait does not end the wait."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request and the key under which its reply is kept. Without messages, the prompt is in ``sampling``."""

    messages: tuple[Mapping[str, Any], ...]
    sampling: Mapping[str, Any]
    key: bytes


def fetch_replies(
    requests: Sequence[Request],
    ask: Ask,
    cache: Cache,
    *,
    name: str,
    concurrency: int = 4,
    on_reply: Callable[[int], None] = lambda n: None,
) -> dict[bytes, Reply]:
    """The reply to each request, by key; requests missing from the cache are sent.

    A request that is too long for the server gets an empty reply with finish ``TOO_LONG``. It is not cached, since the
    server may be restarted with a longer context.

    After an interrupt nothing more is sent, and pending replies are not awaited.

    Raises:
        AfzalError: a request failed for good. Earlier replies are in the cache.
    """
    by_key = {r.key: r for r in requests}
    replies = {key: reply for key in by_key if (reply := cache.get(key)) is not None}
    missing = deque(request for key, request in by_key.items() if key not in replies)
    lock, stop, failed = threading.Lock(), threading.Event(), list[BaseException]()

    def reply_to(request: Request) -> Reply:
        try:
            reply = ask(request.messages, request.sampling)
        except TooLong:
            return Reply("", TOO_LONG)
        cache.put(request.key, name, reply)
        return reply

    def work() -> None:
        while missing and not stop.is_set():
            try:
                request = missing.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                reply = reply_to(request)
                with lock:
                    replies[request.key] = reply
                    on_reply(len(replies))
            except BaseException as error:
                failed.append(error)
                stop.set()

    # daemons, since Python waits for other threads at exit, so that an interrupt would wait for a hung server
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(missing)))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(_POLL)
    finally:
        stop.set()
    if failed:
        raise failed[0]
    return replies


def counter(total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """A callback that reports progress at every tenth, with the estimated time left."""
    started, reported = time.monotonic(), [0]

    def on_reply(n: int) -> None:
        if 10 * n // total > reported[0]:
            reported[0] = 10 * n // total
            seconds_left = (time.monotonic() - started) / n * (total - n)
            say(f"{n} of {total} replies" + (f", {time_left(seconds_left)}" if n < total else ""))

    return on_reply
