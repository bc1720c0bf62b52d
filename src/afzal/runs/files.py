"""Write and read the files of a run so that they survive a crash.

A file is replaced in four steps: write a temporary file next to it, force that to disk, rename it, and force the folder
to disk. After a crash, and for any reader, the file has either the old content or the new.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError, existing, writing

_RESTORE = "restore the file, or start a new run with another --out"
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of a flat buffer (``os.write`` may write fewer, above all on a nearly full disk)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def new_file(path: Path) -> AbstractContextManager[int]:
    """Open a new file, which must not exist yet, and force it to disk at the end of the block; gives the descriptor."""
    return _durable(path, os.O_EXCL)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: Path) -> None:
    """Force a folder's entries (names, renames) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def force_to_disk(folder: Path) -> None:
    """Force every file directly in a folder, and the names of its entries, to disk.

    Raises:
        AfzalError: the disk refuses.
    """
    with writing(folder):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        fsync_folder(folder)


def refuse_existing(path: str | Path | None, force: bool | None = None) -> None:
    """Raise AfzalError if ``path`` exists or cannot be written; None means that no file is wanted.

    Args:
        force: whether it may be overwritten; None if the command has no such flag.
    """
    if not path:
        return
    with writing(path):  # a parent folder may be unreadable
        if not force and Path(path).exists():
            remedy = "choose another --out" if force is None else "choose another name, or pass --force (force=True)"
            raise AfzalError(f"{path} exists; nothing was overwritten", remedy=remedy)
    refuse_unwritable(path)


def refuse_unwritable(path: str | Path) -> None:
    """Raise early what writing ``path`` (a file, or files in a folder) would raise later, as far as the nearest
    existing folder shows.

    Raises:
        AfzalError: nothing can be written there.
    """
    with writing(path):
        folder = Path(path) if Path(path).is_dir() else existing(Path(path).absolute().parent)
        code = None if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
        if not folder.is_dir():
            code = errno.ENOTDIR
        elif hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY:
            code = errno.EROFS
        if code is not None:
            raise OSError(code, os.strerror(code))


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents, unless they exist.

    Raises:
        AfzalError: the disk refuses.
    """
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replace the content of ``path`` with ``data`` (text as UTF-8) atomically.

    Raises:
        AfzalError: the disk refuses. The old content is untouched, and no temporary file remains.
    """
    path, raw = Path(path), data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, len(raw)):
        try:
            with _durable(temporary, os.O_TRUNC) as descriptor:
                write_all(descriptor, raw)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def to_json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON; a non-finite number becomes a string ("NaN")."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_format_nonfinite(record), ensure_ascii=False, allow_nan=False, default=_plain)


def parse_nonfinite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the strings "NaN", "Infinity" and "-Infinity" as floats again."""
    return {k: _NONFINITE[v] if isinstance(v, str) and v in _NONFINITE else v for k, v in record.items()}


def append_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON line per record, in a single write."""
    data = "".join(to_json_line(record) + "\n" for record in records).encode()
    with writing(path, len(data)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file with one JSON line per record, atomically. Its folder is made if necessary.

    Raises:
        AfzalError: the disk refuses.
    """
    make_folder(Path(path).parent)
    atomic_write(path, "".join(to_json_line(record) + "\n" for record in records))


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file; none if it is missing.

    A killed writer may leave a last line without a newline; it is skipped if it does not parse.

    Raises:
        AfzalError: any other line is not a JSON object (names ``file:line``).
    """
    if not Path(path).exists():
        return
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is not None:
                yield record
            elif line.endswith(b"\n") and line.strip():
                raise AfzalError("this line is not a JSON object", where=f"{path}:{number}", remedy="remove the line")


def last_jsonl(path: Path, key: str, value: Any, n_bytes: int | None = None) -> dict[str, Any] | None:
    """The last record whose ``key`` is ``value``. The file is read from its end, so a long file costs nothing.

    Args:
        n_bytes: how many bytes to look back at most; default: to the beginning.
    """
    for line in _lines_backwards(path, n_bytes):
        record = _parse(line)
        if record is not None and record.get(key) == value:
            return record
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        AfzalError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise AfzalError(f"cannot read {path}", why=error.strerror or str(error), remedy=_RESTORE) from error
    except (ValueError, RecursionError) as error:
        raise AfzalError(f"{path} is not JSON", why=str(error), remedy=_RESTORE) from error
    if not isinstance(content, dict):
        raise AfzalError(f"{path} is not a JSON object", remedy=_RESTORE)
    return content


@contextmanager
def _durable(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """numpy and torch scalars as Python numbers; paths as text."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        number = value.item()
        return number if not isinstance(number, float) or math.isfinite(number) else _format_nonfinite(number)
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def _format_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {k: _format_nonfinite(v) for k, v in value.items()}
    return [_format_nonfinite(v) for v in value] if isinstance(value, (list, tuple)) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _lines_backwards(path: Path, n_bytes: int | None = None, block: int = 1 << 16) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        end, partial = file.seek(0, os.SEEK_END), b""
        first = 0 if n_bytes is None else max(0, end - n_bytes)
        while end > first:
            start = max(first, end - block)
            file.seek(start)
            partial, *lines = (file.read(end - start) + partial).split(b"\n")
            yield from reversed(lines)
            end = start
        yield partial  # only the tail of a line that begins before ``first``, which does not parse
