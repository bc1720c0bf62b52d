"""Read rows from files, folders and hub data sets, each with its place."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afzal.data.fields import Row
from afzal.data.json_reader import Fault, RawRow, first_fault, read_array, read_lines, unfold_table
from afzal.data.magic import HEAD, other_kind, refuse_foreign_text
from afzal.errors import AfzalError, did_you_mean

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
MAX_UNPACKED = 4 * 2**30  # bytes
_MAX_CELL = 64 * 2**20  # characters of a cell, and of a line, of a table
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w.\[\]:%-]+)?")
_HUB_HELP = "a hub data set is owner/name, owner/name@split or owner/name:config@split"


def rows(source: str | Path, max_unpacked: int = MAX_UNPACKED) -> Iterator[RawRow]:
    """Rows of a file, a folder of files, a ``save_to_disk`` folder, or a hub id.

    Args:
        max_unpacked: bytes that a gzip file may unpack to; 0 for any number.

    Raises:
        AfzalError: there is nothing, the kind of file is unknown, or it cannot be read as its kind.
    """
    refuse_missing(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, max_unpacked)
    return _file(path, max_unpacked) if path.is_file() else _hub(str(source))


def refuse_missing(source: str | Path) -> None:
    """Raise AfzalError if the source is neither a file, nor a folder, nor shaped like a hub id."""
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return
    is_hub = isinstance(source, str) and _HUB.fullmatch(source) and not source.endswith((*KINDS, ".gz"))
    hint = did_you_mean(path)
    if hint or not is_hub:  # if a similar local name exists, a typo is likelier than a hub data set
        raise AfzalError(f"no such file or folder: {source}", remedy=hint or f"check the path; {_HUB_HELP}")


def kind_of_file(path: Path) -> str:
    """The extension that determines how to read a file, without ``.gz``; "" if it is unknown."""
    names = [suffix.lower() for suffix in path.suffixes]
    if names and names[-1] == ".gz":
        names.pop()
    return names[-1] if names and names[-1] in KINDS else ""


def _file(path: Path, limit: int) -> Iterator[RawRow]:
    kind, packed = kind_of_file(path), path.suffix.lower() == ".gz"
    if kind in (".parquet", ".arrow"):
        if packed:
            raise AfzalError(
                f"{path.name}: unpack {kind} files first", where=str(path), why="they are compressed inside"
            )
        return _parquet(path) if kind == ".parquet" else _arrow(path)
    return _text(path, kind, packed, limit)


def _text(path: Path, kind: str, packed: bool, limit: int) -> Iterator[RawRow]:
    name = str(path)
    try:
        with _open(path, packed, limit) as stream:
            _refuse_foreign(stream, path, packed)
            if kind in (".csv", ".tsv"):
                yield from _table(stream, name, "\t" if kind == ".tsv" else ",")
            elif _is_lines(stream, kind, name):
                lines = read_lines(stream, name)
                yield from unfold_table(lines, name) if kind == ".json" else lines
            else:
                yield from unfold_table(read_array(stream, name), name)
    except UnicodeDecodeError:
        with _open(path, packed, limit) as stream:
            raise first_fault(stream, name) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if isinstance(error, gzip.BadGzipFile) and (other_error := other_kind(path, ".gz")):
            raise other_error from None
        remedy = "download it again"
        if isinstance(error, gzip.BadGzipFile):
            remedy += ", or take .gz out of its name if it is not compressed"
        why = f"{error}; was it cut off?"
        raise AfzalError("the gzip file cannot be unpacked", where=name, why=why, remedy=remedy) from None
    except OSError as error:
        raise AfzalError("the file cannot be read", where=name, why=str(error.strerror or error)) from None


def _refuse_foreign(stream: io.BufferedReader, path: Path, packed: bool) -> None:
    """Refuse content that is not UTF-8 text; for a compressed file, the message does not refer to its name."""
    try:
        refuse_foreign_text(stream.peek(HEAD)[:HEAD], str(path))
    except AfzalError as error:
        if not packed:
            raise
        message = error.what.removesuffix(", but its name does not say so")
        raise AfzalError(message.replace("the file", "what is inside"), where=error.where, remedy="unpack it") from None


def _open(path: Path, packed: bool, limit: int) -> io.BufferedReader:
    return io.BufferedReader(_Unpacked(path, limit) if packed else io.FileIO(path), 2**16)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to ``limit`` bytes (0: no limit): a few kilobytes can unpack to any size."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit, self._bytes = path, limit, 0
        self._file = gzip.GzipFile(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer)
        self._bytes += size
        if self._limit and self._bytes > self._limit:
            raise AfzalError(
                f"unpacks to more than {self._limit / 2**30:g} GiB",
                where=str(self._path),
                remedy="unpack it first, or lift the limit of check and convert with --max-unpacked 0",
            )
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _is_lines(stream: io.BufferedReader, kind: str, name: str) -> bool:
    """Whether text is JSON lines, judged by its beginning: people use .json and .jsonl for either kind."""
    head = stream.peek(2**16)[: 2**16].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not kind and head[:1] not in (b"{", b"["):
        kinds = " ".join(KINDS)
        raise AfzalError("unknown kind of file", where=name, remedy=f"known: {kinds} (text kinds also with .gz)")
    if head[:1] == b"[":
        return kind != ".json" and head.rstrip() != b"[" and head[:2] not in (b"[{", b"[\n", b"[\r", b"[ ")
    first, newline, rest = head.partition(b"\n")
    return kind == ".jsonl" or not newline or bool(first.rstrip().endswith(b"}") and rest.strip())


_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


def _table(stream: io.BufferedReader, name: str, separator: str) -> Iterator[RawRow]:
    csv.field_size_limit(_MAX_CELL)
    lines = _Lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), name)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise AfzalError(f"the header is not a table row: {error}", where=f"{name}:1") from None
    if duplicates := [column for column in header if header.count(column) > 1]:
        raise AfzalError(f"column '{duplicates[0]}' occurs twice in the header", where=f"{name}:1", remedy="rename one")
    separators = [mark for mark in _MARKS if mark in header[0]] if len(header) == 1 else []
    if separators:
        raise AfzalError(
            f"the header is one cell with {_MARKS[separators[0]]} in it: {header[0]!r}",
            where=f"{name}:1",
            remedy=f"separate the cells of a {'.tsv by tabs' if separator == chr(9) else '.csv by commas'}",
        )
    while True:
        line = lines.ended + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            unclosed = "end of data" in str(error) or "field limit" in str(error)
            why = "an unclosed quote makes the rest of the file one cell" if unclosed else ""
            raise AfzalError(f"is not a table row: {error}", where=f"{name}:{line}", why=why) from None
        if cells is None:
            return
        if cells:
            yield RawRow(f"{name}:{line}", _cells(header, cells))


class _Lines:
    """The lines of a table, with a count of those that have ended, as editors and ``grep -n`` count them (by line
    feeds).

    A lone carriage return inside a cell does not end a line, except in files that end all lines with it.
    """

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self.ended, self._text, self._name, self._mark = 0, text, name, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MAX_CELL)
        if not line:
            raise StopIteration
        if len(line) >= _MAX_CELL:
            raise AfzalError(f"a line is longer than {_MAX_CELL // 2**20} MiB", where=f"{self._name}:{self.ended + 1}")
        self._mark = self._mark or ("\r" if line.endswith("\r") else "\n")
        self.ended += line.endswith(self._mark)
        return line


def _cells(header: list[str], cells: list[str]) -> dict[str, Any] | Fault:
    if len(cells) != len(header):
        return Fault("wrong_width", f"has {len(cells)} cells, the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        yield from _batches(file.iter_batches(batch_size=1024), str(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("parquet", path, error) from None


def _arrow(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            try:
                reader = pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid:
                mapped.seek(0)
                file = pa.ipc.open_file(mapped)
                reader = (file.get_batch(n) for n in range(file.num_record_batches))
            yield from _batches(reader, str(path))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable("arrow", path, error) from None


def _unreadable(kind: str, path: Path, error: Exception) -> AfzalError:
    if other_error := other_kind(path, f".{kind}"):
        return other_error
    remedy = "write or download it again, or give the rows as JSON lines"
    return AfzalError(f"is not a readable {kind} file", where=str(path), why=_first_line(error), remedy=remedy)


def _batches(batches: Any, name: str) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for row in _values(batch):
            number += 1
            yield RawRow(f"{name}:{number}", row)


def _values(batch: Any) -> list[Row | Fault]:
    """The rows of a batch; a row that cannot be converted to Python values becomes a fault."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError; dates out of range are others
        return [_value(batch.slice(n, 1)) for n in range(batch.num_rows)]


def _value(row: Any) -> Row | Fault:
    for field, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError as error:
            return Fault(
                "not_utf8", f"field '{field}' holds a byte that is not UTF-8 (0x{error.object[error.start]:02x})"
            )
        except (ValueError, OverflowError) as error:
            return Fault("bad_value", f"field '{field}' holds a value that cannot be read: {_first_line(error)}")
    return row.to_pylist()[0]


def _folder(path: Path, limit: int) -> Iterator[RawRow]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        raise AfzalError(f"{path} is a model folder, not data", remedy="give it as --model")
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and kind_of_file(f) and not _hidden(f, path)]
    kinds = sorted({kind_of_file(f) for f in files})
    if not files:
        raise AfzalError(f"no data files in {path}", remedy=f"known kinds: {' '.join(KINDS)}")
    if len(kinds) > 1:
        raise AfzalError(
            f"{path} mixes kinds of files: {' '.join(kinds)}", remedy="name one file, or one kind per folder"
        )
    return (raw for file in files for raw in _file(file, limit))


def _saved(path: Path) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds
        raise AfzalError("the saved data set cannot be loaded", where=str(path), why=_first_line(error)) from None
    return _records(loaded, str(path), "")


def _hub(source: str) -> Iterator[RawRow]:
    import datasets

    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or None)
    except Exception as error:  # network, permission, unknown name: the library raises many kinds
        raise AfzalError(
            f"no file or folder {source}, and the hub data set could not be loaded",
            why=_first_line(error),
            remedy=f"check the path; {_HUB_HELP}",
        ) from None
    return _records(loaded, source, split)


def _records(loaded: Any, name: str, split: str) -> Iterator[RawRow]:
    """Rows of a ``datasets`` object: of the chosen split, else of ``train`` or the only split."""
    if isinstance(loaded, dict):
        splits = sorted(map(str, loaded))
        chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else "")
        if not chosen:
            example = f"{name}@{splits[0]}" if not Path(name).exists() else str(Path(name) / splits[0])
            raise AfzalError(f"{name} has several splits: {', '.join(splits)}", remedy=f"name one: {example}")
        loaded, name = loaded[chosen], f"{name}@{chosen}"
    # as stored: decoding images and sounds would lose their bytes, and would need further libraries
    stored = (row for table in loaded.with_format("arrow").iter(1000) for row in table.to_pylist())
    rows = stored if any(kind in str(loaded.features) for kind in ("Image(", "Audio(")) else loaded
    return (RawRow(f"{name}:{n}", row) for n, row in enumerate(rows, 1))


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts) or file.name in _NOT_DATA


_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "state.json", "config.json", "package.json"})


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
