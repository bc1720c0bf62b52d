"""Servers' replies on disk, so that each is requested and paid for only once.

SQLite in WAL mode, one row per reply, flushed to disk before it counts. The raw reply is stored and parsed anew each
time, so that changed parsing needs no new requests. Errors are never stored.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError

REPLIES = "replies.sqlite"
"""The default name of the file."""

TOO_LONG = "too_long"
"""The finish of a missing reply to a request that is too long for the server's model."""

_TABLE = """
CREATE TABLE IF NOT EXISTS reply (
  key BLOB PRIMARY KEY, judge TEXT NOT NULL, text TEXT NOT NULL, finish TEXT NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply: the text, why it ended (``stop``, ``length``, others), and tokens of request and reply."""

    text: str
    finish: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0


def key_of(request: Mapping[str, Any]) -> bytes:
    """The key of a request: a hash of everything that determines the reply. It contains no secret."""
    body = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).digest()


class Cache:
    """Replies by key; safe to use from several threads.

    Raises:
        AfzalError: the file is not a cache, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_TABLE)
            self._connection.commit()
        except (sqlite3.Error, OSError) as error:
            raise AfzalError(
                "the cache of replies cannot be opened",
                where=str(path),
                why=str(error),
                remedy="free some space if the disk is full; else move the file away to request its replies again",
            ) from None
        self._path = path

    def get(self, key: bytes) -> Reply | None:
        with self._lock, self._named_errors("read"):
            row = self._connection.execute(
                "SELECT text, finish, tokens_in, tokens_out FROM reply WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Reply(*row)

    def put(self, key: bytes, judge: str, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns.

        Raises:
            AfzalError: the disk is full or cannot be written.
        """
        values = (key, judge, reply.text, reply.finish, reply.tokens_in, reply.tokens_out)
        with self._lock, self._named_errors("kept"), self._connection:
            self._connection.execute("INSERT OR REPLACE INTO reply VALUES (?, ?, ?, ?, ?, ?)", values)

    @contextmanager
    def _named_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise AfzalError(
                f"a server's reply cannot be {action}",
                where=str(self._path),
                why=str(error),
                remedy="free some space, or fix the disk: the same command requests only missing replies",
            ) from None

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT COUNT(*) FROM reply").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
