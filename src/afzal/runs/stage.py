"""Stages that a resumed program does not repeat: each is a file that is complete or absent, with the key of its inputs.

Rounds, comparisons, sweeps and judges are chains of stages. The file alone says whether a stage has run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.runs.files import atomic_write, make_folder, read_json, read_jsonl

Row = dict[str, Any]


def key_of(*values: Any) -> str:
    """SHA-256 of JSON values, independent of the order of keys in mappings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_stage(path: Path, key: str) -> Row | None:
    """The content that :func:`write_stage` wrote under this key; None if there is no file, or it has another key."""
    if not path.exists():
        return None
    body = read_json(path)
    return body if body.get("key") == key else None


def write_stage(path: Path, key: str, body: Mapping[str, Any]) -> None:
    """Replace the file of a stage atomically."""
    make_folder(path.parent)
    atomic_write(path, json.dumps({"key": key, **body}) + "\n")


def run_stage(path: Path, make: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of a stage, always read from its file; if there is none, they are made and written first.

    There is no key. Use it in folders that refuse other settings when they are resumed.
    """
    if not path.exists():
        make_folder(path.parent)
        write_rows(path, make())
    return read_rows(path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines atomically."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return list(read_jsonl(path))
