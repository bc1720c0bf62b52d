"""Sending one conversation, or one text to continue, to an OpenAI-compatible server, with a bounded number of tries."""

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

_RETRY_STATUSES = {408, 409, 425, 429, *range(500, 600)}
# messages of OpenAI, vLLM, SGLang, llama.cpp and others about a request that is too long for the model
_LENGTH = re.compile(r"context[ _]?(length|size|window)|too long|too many tokens|longer than the model", re.IGNORECASE)
_LIMIT = "max_completion_tokens"  # OpenAI's newer models require this instead of max_tokens
_BROKEN_OFF = ("error", "abort")  # finish reasons of replies that the server aborted
_LONGEST_WAIT_S = 60.0
IN_A_ROW = 5
"""Number of consecutive failed requests, with all tries used, after which nothing more is sent."""


class Unreachable(AfzalError):  # noqa: N818 - a state of the server, not a fault of ours
    """The server gave no reply within the allowed tries; earlier replies are kept, and the same command resumes."""


class TooLong(AfzalError):  # noqa: N818 - what was asked is not a fault of the settings
    """The server refuses a request because it is too long for its model; others may still be answered."""


class ServerSettings(Protocol):
    """A server's settings; ``key_env`` is the environment variable that holds the key."""

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
    """A server and how to use it.

    Attributes:
        url: up to and including ``/v1``.
        key: sent as a bearer token; never written anywhere.
        caller: the caller's name in messages.
        exact: whether a reply must name exactly the requested model.
        sleep: waits; replaced in tests.
        faults: counts of faults by name; ``last_message`` is the server's message with the last one.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    attempts: int = 5
    caller: str = "judge"
    exact: bool = False
    sleep: Callable[[float], None] = time.sleep
    transport: Any = None
    faults: Counter[str] = field(default_factory=Counter)
    last_message: str = ""
    _limit: str = "max_tokens"
    _failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _client: Any = field(default=None, repr=False)

    def ask(self, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]) -> Reply:
        """One reply to a conversation. A message's content is a text, or parts in the server's format.

        Raises:
            Unreachable: no usable reply within the tries, or too many requests failed one after another.
            TooLong: the server's model cannot read so long a request.
            AfzalError: the server refuses the request (a wrong key, model or field), or another model replies; retrying
                would not help.
        """
        return self._request("/chat/completions", {"messages": [dict(m) for m in messages], **sampling})

    def complete(self, prompt: str | Sequence[int], sampling: Mapping[str, Any]) -> Reply:
        """The continuation of a prompt, given as text or token ids. Raises as :meth:`ask`."""
        return self._request("/completions", {"prompt": prompt, **sampling})

    def _request(self, path: str, fields: Mapping[str, Any]) -> Reply:
        body = {"model": self.model, **fields}
        for attempt in range(self.attempts):
            if self._failed >= IN_A_ROW:
                break
            reply, fault, wait = self._attempt(path, body)
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
            f"the {self.caller}'s server gave no reply in {self.attempts} tries",
            where=self.url,
            why=", ".join(f"{n} x {name}" for name, n in self.faults.most_common())
            + (f"; it says: {self.last_message}" if self.last_message else ""),
            remedy="the replies so far are kept: run the same command again when the server answers",
        )

    def _attempt(self, path: str, body: Mapping[str, Any]) -> tuple[Reply | None, str, float | None]:
        """A reply, or the fault and the wait in seconds that the server asks for."""
        import httpx2

        payload = {
            self._limit if name == "max_tokens" and "messages" in body else name: value for name, value in body.items()
        }
        try:
            response = self._connected().post(path, json=payload)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise AfzalError(
                f"the {self.caller}'s url is not a valid URL",
                where=self.url,
                why=str(error),
                remedy="write it as http://host:port/v1 or https://host/v1",
            ) from None
        except httpx2.TimeoutException:
            return None, "time-out", None
        except httpx2.HTTPError as error:
            return None, f"no connection ({type(error).__name__})", None
        body_read = _json(response.text)
        status, message = _status_of(response.status_code, response.text, body_read)
        if status in _RETRY_STATUSES:
            self.last_message = "" if message.lstrip().startswith("<") else " ".join(message.split())[:200]
            place = "" if response.status_code == status else f" in a reply of status {response.status_code}"
            return None, f"status {status}{place}", _retry_after(response.headers.get("retry-after"))
        if status != 200:
            too_long = status in (400, 413, 422) and _LENGTH.search(response.text)
            if "max_tokens" in payload and "messages" in payload and _LIMIT in message and not too_long:
                self._limit = _LIMIT
                return self._attempt(path, body)
            raise (TooLong if too_long else AfzalError)(
                f"the {self.caller}'s server refuses the request with status {status}",
                where=self.url,
                why=message[:300] or response.headers.get("location", ""),
                remedy=f"check url, model and key_env of the {self.caller}{_hint(path, body, status, message)}",
            )
        try:
            reply = _reply(body_read)
        except (ValueError, KeyError, TypeError, IndexError):
            return None, "a reply that is not a completion", None
        if self.exact:
            self._refuse_another(str(body_read.get("model")))
        return reply, "", None

    def _refuse_another(self, replied: str) -> None:
        """Refuse a reply by another model. Some servers always answer with their only model; one appends
        ``@revision``."""
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
    """A body parsed as JSON; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _status_of(status: int, text: str, body: Any) -> tuple[int, str]:
    """The status and the message of a reply. An error can come with status 200 and its own status, or none, in the
    body; without one it is retried, unless the request is too long."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    message = message if isinstance(message, str) and message else text
    if status != 200 or not error or body.get("choices"):
        return status, message
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return code, message
    return 400 if _LENGTH.search(text) else 500, message


def _hint(path: str, body: Mapping[str, Any], status: int, message: str) -> str:
    """A hint at another possible reason for a refusal."""
    if "temperature" in message:
        return "; if its model accepts only one temperature, set that"
    if _has_media(body):
        return "; the request holds images or sounds, which its model must be able to read"
    if status == 404 and path == "/completions":
        return "; plain texts go to /completions, which not every server has: if so, write prompts as messages"
    return ""


def _has_media(body: Mapping[str, Any]) -> bool:
    return any(not isinstance(message["content"], str) for message in body.get("messages", ()))


def _reply(body: Any) -> Reply:
    choice = body["choices"][0]
    # a model that spent all its tokens on thinking has no content, or null
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    if isinstance(text, list):  # parts other than text, such as thinking, do not belong to the answer
        text = "".join(part["text"] for part in text if part["type"] == "text")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish in _BROKEN_OFF:
        raise ValueError("a reply without a finish reason was cut")
    usage = body.get("usage")
    counts = (usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens"))
    # half of a surrogate pair, as from a cut emoji, cannot be written to a file
    writable = text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
    return Reply(writable, finish, *(int(count or 0) for count in counts))


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None


def server_from(settings: ServerSettings, caller: str) -> Server:
    """The server that settings describe; ``caller`` is the caller's name in messages.

    Raises:
        AfzalError: the variable with the key is not set.
    """
    key = key_from(settings.key_env)
    url, model = settings.url or "", settings.model or ""
    return Server(url, model, key, timeout=settings.timeout, attempts=settings.attempts, caller=caller)


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
