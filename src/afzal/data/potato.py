"""Read Potato's output folders: every user's annotations, joined with the annotated texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from afzal.data.fields import Row
from afzal.data.files import KINDS, kind_of_file, rows
from afzal.data.json_reader import RawRow

_OF_USER = "annotated_instances.jsonl"
_OF_ALL = "annotations.jsonl"
_OWN = frozenset({_OF_ALL, "annotations.csv", "annotations.tsv", "phase_responses.jsonl", "user_config.json"})


def is_potato_folder(source: str | Path) -> bool:
    """Whether a folder holds Potato's output: a folder per user, or one export for all users with its data file."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return False
    return any(path.glob(f"*/{_OF_USER}")) or ((path / _OF_ALL).is_file() and any(_data_files(path)))


def potato_rows(source: str | Path) -> Iterator[RawRow]:
    """Every annotation with its user and, if a data file is next to the output, the fields of its instance."""
    path = Path(source).expanduser()
    instances: dict[str, Row] = {}
    for file in _data_files(path):
        for raw in rows(file):
            if isinstance(raw.value, Mapping) and "id" in raw.value:
                instances[str(raw.value["id"])] = raw.value
    by_user = sorted(path.glob(f"*/{_OF_USER}"))
    for file in by_user or [path / _OF_ALL]:
        for raw in rows(file):
            if isinstance(raw.value, Mapping):
                raw = RawRow(raw.where, _with_instance(raw.value, instances, file.parent.name if by_user else ""))
            yield raw


def _with_instance(row: Row, instances: Mapping[str, Row], user: str) -> dict[str, Any]:
    name = str(row.get("instance_id", row.get("id")))
    return {**instances.get(name, {}), **({"user_id": user} if user else {}), **row, "id": name}


def _data_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.is_file() and kind_of_file(file) in KINDS)
    return [file for file in files if file.name not in _OWN]
