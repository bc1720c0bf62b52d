"""One question, or one text to be continued, to an OpenAI-compatible server, with a bounded number of tries."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from afzal.errors import AfzalError
from afzal.servers.cache import Reply

_AGAIN = {408, 409, 425, 429, *range(500, 600)}
# what OpenAI, vLLM, SGLang, llama.cpp and others say of a request that is longer than their model reads
_LENGTH = re.compile(r"context[ _]?(length|size|window)|too long|too many tokens|longer than the model", re.IGNORECASE)
_LIMIT = "max_completion_tokens"  # what OpenAI's newer models call max_tokens, which they refuse
_BROKEN_OFF = ("error", "abort")  # replies that the server itself gave up
_LONGEST_WAIT_S = 60.0
IN_A_ROW = 5
"""Requests that fail one after another, all their tries used, before nothing more is sent."""


class Unreachable(AfzalError):  # noqa: N818 - a state of the server, not a fault of ours
    """The server gave no reply within the tries allowed; replies so far are kept, and the same command resumes."""


class TooLong(AfzalError):  # noqa: N818 - what was asked is not a fault of the settings
    """The server refuses one request because it is longer than its model can read; others may still be answered."""


class Reached(Protocol):
    """What settings say of a server: ``key_env`` is the environment variable that holds the key."""

    @property
    def url(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def key_env(self) -> str | None: ...
    @property
    def timeout(self) -> float: ...
    @property
    def attempts(self) -> int: ...


@dataclass(slots=True)
class Server:
    """A server and what it is asked for.

    Attributes:
        url: up to and with ``/v1``.
        key: sent as a bearer token; never written anywhere.
        whose: who asks, as messages name it.
        exact: whether a reply must name the very model that was asked for.
        sleep: waits; a test counts instead.
        faults: how often each kind of fault came, by name; ``said`` is the server's message with the last of them.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    attempts: int = 5
    whose: str = "judge"
    exact: bool = False
    sleep: Callable[[float], None] = time.sleep
    transport: Any = None
    faults: Counter[str] = field(default_factory=Counter)
    said: str = ""
    _limit: str = "max_tokens"
    _failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _client: Any = field(default=None, repr=False)

    def ask(self, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]) -> Reply:
        """One reply to a conversation. The content of a message is a text, or parts as the server takes them.

        Raises:
            Unreachable: no usable reply within the tries, or too many requests failed one after another.
            TooLong: the server's model cannot read so long a request.
            AfzalError: the server refuses the request (a wrong key, model or field), or another model replies; another
                try would not help.
        """
        return self._asked("/chat/completions", {"messages": [dict(m) for m in messages], **sampling})

    def complete(self, prompt: str | Sequence[int], sampling: Mapping[str, Any]) -> Reply:
        """What follows a prompt, a text or token ids. Raises as :meth:`ask`."""
        return self._asked("/completions", {"prompt": prompt, **sampling})

    def _asked(self, path: str, fields: Mapping[str, Any]) -> Reply:
        body = {"model": self.model, **fields}
        for attempt in range(self.attempts):
            if self._failed >= IN_A_ROW:
                break
            reply, fault, wait = self._once(path, body)
            if reply is not None:
                with self._lock:
                    self._failed = 0
                return reply
            with self._lock:
                self.faults[fault] += 1
            if attempt + 1 < self.attempts:
                self.sleep(min(_LONGEST_WAIT_S, wait if wait is not None else 2.0**attempt))
        with self._lock:
            self._failed += 1
        raise Unreachable(
            f"the {self.whose}'s server gave no reply in {self.attempts} tries",
            where=self.url,
            why=", ".join(f"{n} x {name}" for name, n in self.faults.most_common())
            + (f"; it says: {self.said}" if self.said else ""),
            remedy="the replies so far are kept: run the same command again when the server answers",
        )

    def _once(self, path: str, body: Mapping[str, Any]) -> tuple[Reply | None, str, float | None]:
        """A reply, or the fault and how long the server asks to wait."""
        import httpx2

        sent = {self._limit if name == "max_tokens" and "messages" in body else name: of for name, of in body.items()}
        try:
            found = self._connected().post(path, json=sent)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise AfzalError(
                f"the {self.whose}'s url is not an address",
                where=self.url,
                why=str(error),
                remedy="write it as http://host:port/v1 or https://host/v1",
            ) from None
        except httpx2.TimeoutException:
            return None, "time-out", None
        except httpx2.HTTPError as error:
            return None, f"no connection ({type(error).__name__})", None
        read = _json(found.text)
        status, said = _told(found.status_code, found.text, read)
        if status in _AGAIN:
            self.said = "" if said.lstrip().startswith("<") else " ".join(said.split())[:200]
            inside = "" if found.status_code == status else f" in a reply of status {found.status_code}"
            return None, f"status {status}{inside}", _asked_wait(found.headers.get("retry-after"))
        if status != 200:
            too_long = status in (400, 413, 422) and _LENGTH.search(found.text)
            if "max_tokens" in sent and "messages" in sent and _LIMIT in said and not too_long:
                self._limit = _LIMIT
                return self._once(path, body)
            raise (TooLong if too_long else AfzalError)(
                f"the {self.whose}'s server refuses the request with status {status}",
                where=self.url,
                why=said[:300] or found.headers.get("location", ""),
                remedy=f"check url, model and key_env of the {self.whose}{_hint(path, body, status, said)}",
            )
        try:
            reply = _reply(read)
        except (ValueError, KeyError, TypeError, IndexError):
            return None, "a reply that is not a completion", None
        if self.exact:
            self._refuse_another(str(read.get("model")))
        return reply, "", None

    def _refuse_another(self, replied: str) -> None:
        """Some servers answer with the one model that they hold, whatever is asked for; one adds ``@revision``."""
        if replied != self.model and not replied.startswith(f"{self.model}@"):
            raise AfzalError(
                f"the server answers with the model {replied}, not with {self.model}",
                where=self.url,
                remedy="start the server with this model, or name the one that it has",
            )

    def _connected(self) -> Any:
        import httpx2

        with self._lock:
            if self._client is None:
                headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
                self._client = httpx2.Client(
                    base_url=self.url.rstrip("/"), headers=headers, timeout=self.timeout, transport=self.transport
                )
        return self._client


def _json(text: str) -> Any:
    """A body as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _told(status: int, text: str, read: Any) -> tuple[int, str]:
    """The status and the message of a reply. An error may come with status 200, with its own status or none inside;
    one with none is tried again, unless it is the request that is too long."""
    error = read.get("error") if isinstance(read, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    said = said if isinstance(said, str) and said else text
    if status != 200 or not error or read.get("choices"):
        return status, said
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return code, said
    return 400 if _LENGTH.search(text) else 500, said


def _hint(path: str, body: Mapping[str, Any], status: int, said: str) -> str:
    """What else may be behind a refusal."""
    if "temperature" in said:
        return "; where its model takes one temperature only, name that"
    if _shows(body):
        return "; it was sent images or sounds, which its model must read"
    if status == 404 and path == "/completions":
        return "; plain texts go to /completions, which not every server has: write prompts as messages then"
    return ""


def _shows(body: Mapping[str, Any]) -> bool:
    return any(not isinstance(message["content"], str) for message in body.get("messages", ()))


def _reply(body: Any) -> Reply:
    choice = body["choices"][0]
    # a model that spent all its tokens on thinking has no content, or null
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    if isinstance(text, list):  # parts: what is no text, such as thinking, is no part of the answer
        text = "".join(part["text"] for part in text if part["type"] == "text")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish in _BROKEN_OFF:
        raise ValueError("a reply without a reason why it ended was cut")
    usage = body.get("usage")
    counts = (usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens"))
    # half of a surrogate pair, as where an emoji was cut, can stand in no file
    whole = text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
    return Reply(whole, finish, *(int(count or 0) for count in counts))


def _asked_wait(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None


def opened(settings: Reached, whose: str) -> Server:
    """The server that settings describe; ``whose`` says who asks, as messages name it.

    Raises:
        AfzalError: the variable with the key is not set.
    """
    key = key_from(settings.key_env)
    url, model = settings.url or "", settings.model or ""
    return Server(url, model, key, timeout=settings.timeout, attempts=settings.attempts, whose=whose)


def key_from(variable: str | None) -> str:
    """The key in an environment variable.

    Raises:
        AfzalError: the variable is not set.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable)
    if not key:
        raise AfzalError(
            f"the environment variable {variable} is not set", where="key_env", remedy=f"export {variable}=..."
        )
    return key
