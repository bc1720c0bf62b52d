"""Write rows from memory (a list, a pandas frame, a data set) to a file, which all other code reads like any data file.

The file's folder is named by the hash of its content, so the same rows give the same file, and other rows never replace
it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from afzal.data.native import to_row
from afzal.errors import AfzalError, writing
from afzal.records import Item

_EXPECTED = "a path, a hub id, a list of dicts, a pandas DataFrame, or a Dataset of datasets"


def is_source(value: Any) -> bool:
    """Whether a value names a source: a path or a hub id."""
    return isinstance(value, str | os.PathLike)


def save_rows(data: Any, folder: Path, name: str) -> Path:
    """Write rows into ``folder`` and return the file, ``HASH/name.jsonl`` (``.parquet`` if rows hold media).

    Args:
        data: a list or another iterable of dicts, of texts (prompts) or of Afzal's items; a pandas ``DataFrame``; a
            ``Dataset``, or a ``DatasetDict``, of which ``train`` or the only split is used.
        name: the setting's name, for the file name and messages.

    Raises:
        AfzalError: the value holds no rows, or a row holds a value that JSON cannot represent.
    """
    data = _only_split(data, name)
    _refuse_no_rows(data, name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _has_media(data):
        return _write_by_hash(folder, name, ".parquet", lambda path: data.to_parquet(path))
    return _write_by_hash(folder, name, ".jsonl", lambda path: _write_lines(rows_of(data, name), path, name))


def rows_of(data: Any, name: str = "data") -> Iterator[dict[str, Any]]:
    """The rows of a value, one dict each; missing cells of a frame are None.

    Raises:
        AfzalError: it holds no rows.
    """
    _refuse_no_rows(data, name)
    if _is_frame(data):
        yield from data.astype(object).where(data.notna(), None).to_dict(orient="records")
        return
    for k, row in enumerate(data):
        if isinstance(row, Item):
            yield to_row(row)
        elif isinstance(row, str):
            yield {"prompt": row}
        elif isinstance(row, Mapping):
            yield dict(row)
        else:
            raise AfzalError(
                f"row {k} of {name} is a {type(row).__name__}, not a dict", remedy=f"{name} is {_EXPECTED}"
            )


def _is_frame(data: Any) -> bool:
    return hasattr(data, "to_dict") and hasattr(data, "columns") and hasattr(data, "notna")


def _refuse_no_rows(data: Any, name: str) -> None:
    if not _is_frame(data) and (isinstance(data, Mapping) or not isinstance(data, Iterable)):
        raise AfzalError(f"{name} is a {type(data).__name__}, which holds no rows", remedy=f"give {_EXPECTED}")


def _only_split(data: Any, name: str) -> Any:
    """``train`` or the only split of a ``DatasetDict``, as for a hub id; other values unchanged."""
    if not isinstance(data, Mapping) or not all(hasattr(part, "features") for part in data.values()):
        return data
    splits = sorted(map(str, data))
    if "train" not in splits and len(splits) != 1:
        raise AfzalError(f"{name} has several splits: {', '.join(splits)}", remedy=f"give one: dataset[{splits[:1]!r}]")
    return data["train" if "train" in splits else splits[0]]


def _has_media(data: Any) -> bool:
    return (
        hasattr(data, "to_parquet")
        and hasattr(data, "features")
        and any(kind in str(data.features) for kind in ("Image(", "Audio("))
    )


def _write_by_hash(folder: Path, name: str, suffix: str, write: Any) -> Path:
    """The file that ``write(path)`` writes, in a folder named by the hash of its content; an identical file is
    replaced."""
    handle, part = tempfile.mkstemp(suffix=".part", dir=folder)
    os.close(handle)
    try:
        write(Path(part))
        with open(part, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        place = folder / digest[:12] / f"{name}{suffix}"
        place.parent.mkdir(exist_ok=True)
        os.replace(part, place)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return place


def _write_lines(rows: Iterable[Mapping[str, Any]], path: Path, name: str) -> None:
    count = 0
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        for count, row in enumerate(rows, 1):
            try:
                line = json.dumps(row, ensure_ascii=False, default=_json_value)
            except (TypeError, ValueError) as error:
                raise AfzalError(f"row {count - 1} of {name} cannot be written as JSON", why=str(error)) from error
            stream.write(line + "\n")
    if not count:
        raise AfzalError(f"{name} holds no rows")


def _json_value(value: Any) -> Any:
    """JSON values for numpy numbers and arrays, dates, named tuples and sets."""
    for method in ("tolist", "isoformat", "_asdict"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"it holds a {type(value).__name__}; images and sounds are given by path, or in a Dataset")
