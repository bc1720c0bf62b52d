"""Stages that a stopped program does not repeat: a file that is whole or not there, and the key of what made it.

Rounds, comparisons, sweeps and judges are chains of such stages. Whether a stage has run is read off its file, and
nothing else is remembered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.runs.files import atomic_write, make_folder, read_json, read_jsonl

Row = dict[str, Any]


def key_of(*about: Any) -> str:
    """SHA-256 of JSON values: equal for equal causes, whatever the order of keys in mappings."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def kept(path: Path, key: str) -> Row | None:
    """What :func:`keep` wrote under this key; None where there is no file, or another key made it."""
    if not path.exists():
        return None
    body = read_json(path)
    return body if body.get("key") == key else None


def keep(path: Path, key: str, body: Mapping[str, Any]) -> None:
    """Replace the file of a stage as a whole."""
    make_folder(path.parent)
    atomic_write(path, json.dumps({"key": key, **body}) + "\n")


def staged_rows(path: Path, make: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of a stage: from its file, or made and written first. Either way they are what the file says.

    There is no key: for folders that refuse other settings when they are resumed.
    """
    if not path.exists():
        make_folder(path.parent)
        write_rows(path, make())
    return read_rows(path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines as a whole."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return list(read_jsonl(path))
