"""The votes file: lines are only ever appended, and a line is on disk before it is confirmed as saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from afzal.runs import fsync_folder, read_jsonl, write_all, writing
from afzal.runs.files import to_json_line


class Journal:
    """A JSON-lines file that one process appends to.

    A process killed during a write leaves a last line without a line feed. It was not confirmed as saved, so opening
    the file removes it. A failed write removes its own lines.

    Raises:
        AfzalError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._size = _complete_lines(path)
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)
            fsync_folder(path.parent)

    def lines(self) -> list[dict[str, Any]]:
        """All lines, in order.

        Raises:
            AfzalError: a line is not a JSON object (the message names ``file:line``).
        """
        return list(read_jsonl(self.path))

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append these lines. They are on disk when this returns; none of them is if it raises."""
        data = "".join(to_json_line(line) + "\n" for line in lines).encode()
        with writing(self.path, len(data)):
            try:
                write_all(self._descriptor, data)
                os.fsync(self._descriptor)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(data)

    def close(self) -> None:
        os.close(self._descriptor)


def _complete_lines(path: Path, block: int = 1 << 16) -> int:
    """Number of bytes up to and including the last line feed."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0
