"""Read JSON and JSON lines such that every fault names its exact line.

``json.loads`` accepts duplicate keys, NaN and lone surrogates; here they are faults of their row.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from afzal.data.fields import Row, kind
from afzal.data.turns import looks_like_messages
from afzal.errors import AfzalError

MAX_LINE_BYTES = 256 * 2**20
MAX_ROW_CHARACTERS = 64 * 2**20  # of a row inside one JSON document
_CHUNK = 2**20
_LONGEST_TOKEN = 16  # characters: "-Infinity", an escape, and some more
_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = frozenset(("", "\n", "\r\n"))


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be read: ``reason`` is a code, ``detail`` a sentence."""

    reason: str
    detail: str


@dataclass(slots=True)
class RawRow:
    """A row as read: its place (``file:line``), and its fields or its fault.

    Not frozen: one is created for every row, and creating a frozen one takes twice as long.
    """

    where: str
    value: Row | Fault


class _Constant(float):
    """NaN or an infinity spelled out in JSON."""


class _Decoder:
    """A JSON decoder that records faults which the standard one ignores."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._constants: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode_line(self, text: str) -> Row | None:
        """The object on a line that holds one valid object and nothing else; None sends any other line to
        :meth:`decode`."""
        self._forget()
        try:
            value, end = self._json.scan_once(text, 0)  # pyright: ignore[reportAttributeAccessIssue]
        except (StopIteration, ValueError, RecursionError):
            return None
        sound = type(value) is dict and text[end:] in _LINE_ENDS and not self._faults
        return value if sound else None

    def decode(self, text: str) -> Any:
        self._forget()
        return self._json.decode(text)

    def decode_next(self, text: str, start: int) -> tuple[Any, int]:
        self._forget()
        return self._json.raw_decode(text, start)

    def _forget(self) -> None:
        self._faults.clear()
        self._constants.clear()

    def checked(self, value: Any) -> Row | Fault:
        """The value just decoded, if it is an object without faults."""
        if self._faults:
            return self._faults[0]
        return value if isinstance(value, Mapping) else Fault("not_an_object", f"is {kind(value)}, not a JSON object")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            duplicate = next(name for name in names if names.count(name) > 1)
            self._faults.append(Fault("duplicate_key", f"field '{duplicate}' occurs twice in one object"))
        if self._constants and (field := next((name for name, value in pairs if _holds_constant(value)), None)):
            detail = f"field '{field}' has {self._constants[0]}, which is not JSON; write null or a number"
            self._faults.append(Fault("not_json", detail))
        return row

    def _constant(self, name: str) -> float:
        self._constants.append(name)
        return _Constant(name)


def _holds_constant(value: Any) -> bool:
    return isinstance(value, _Constant) or (isinstance(value, list) and any(map(_holds_constant, value)))


def read_lines(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a JSON-lines stream, one line at a time; blank lines and a leading byte-order mark are skipped."""
    decoder, offset, number = _Decoder(), 0, 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            skipped = _skip_line(stream, line)
            yield RawRow(where, Fault("line_too_long", f"is longer than {MAX_LINE_BYTES // 2**20} MiB"))
            offset += skipped
            continue
        content = line.removeprefix(_BOM) if number == 1 else line
        if not content.isspace():
            value = _decode(decoder, content, offset + len(line) - len(content))
            if isinstance(value, Fault) and value.reason == "not_json" and not line.endswith(b"\n"):
                value = Fault("not_json", f"{value.detail}; the file ends inside this row, was it cut off?")
            yield RawRow(where, value)
        offset += len(line)


def read_array(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a JSON document: a list of objects, a sequence of objects, or an object that contains a list of them.

    A window moves over the document: at most one row and one chunk are in memory.
    """
    decoder, window = _Decoder(), Window(stream, name)
    window.skip()
    in_list = window.char() == "["
    window.skip("[" if in_list else "")
    while window.char() not in ("", "]"):
        where = f"{name}:{window.line}"
        checked = window.next_value(decoder)
        if not in_list and (rows := _rows_inside(checked)):
            yield from (RawRow(f"{name}[{key}][{n}]", row) for key, n, row in rows)
        else:
            yield RawRow(where, checked)
        window.skip("," if in_list else "")
    line = window.line
    if in_list and window.char() == "":
        raise AfzalError("the list is not closed", where=f"{name}:{line}", why="the file ends early; was it cut off?")
    window.skip("]")
    if window.char():
        raise AfzalError("more text follows the end of the list", where=f"{name}:{line}", remedy="one list per file")


class Window:
    """The part of a JSON document in memory. ``position`` is the current one, ``line`` its line number."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.text, self.position, self.line, self.ended = "", 0, 1, False
        self._stream, self._name, self._bytes = stream, name, 0
        self._column = 0  # discarded characters of the line that contains text[0]
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def grow(self) -> None:
        """Discard the text before ``position``, and read as much again as is in memory."""
        discarded = self.text[: self.position]
        self._column = (
            len(discarded) - discarded.rfind("\n") - 1 if "\n" in discarded else self._column + len(discarded)
        )
        self.text, self.position = self.text[self.position :], 0
        if len(self.text) > MAX_ROW_CHARACTERS:
            message = f"a row is longer than {MAX_ROW_CHARACTERS // 2**20} MiB"
            raise AfzalError(message, where=f"{self._name}:{self.line}")
        data = self._stream.read(max(_CHUNK, len(self.text)))
        if not self._bytes:
            data = data.removeprefix(_BOM)
        self.ended = not data
        pending = len(self._decoder.getstate()[0])
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise _not_utf8(error, self._bytes - pending, f"{self._name}:{line}") from None
        self._bytes += len(data)

    def char(self) -> str:
        """The next character; "" at the end."""
        while self.position >= len(self.text) and not self.ended:
            self.grow()
        return self.text[self.position : self.position + 1]

    def skip(self, mark: str = "") -> None:
        """Skip white space, at most one ``mark``, and white space again."""
        while (char := self.char()) and (char.isspace() or (mark and char == mark)):
            if char == mark:
                mark = ""
            self.line += char == "\n"
            self.position += 1

    def next_value(self, decoder: _Decoder) -> Row | Fault:
        """The next value, if it is an object without faults.

        Raises:
            AfzalError: the text is not JSON; names the line and column.
        """
        while True:
            try:
                value, end = decoder.decode_next(self.text, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_go_on(error):
                    raise self._broken(error) from None
            except (ValueError, RecursionError):
                message = "is nested too deeply or holds a number that cannot be read"
                raise AfzalError(message, where=f"{self._name}:{self.line}") from None
            else:
                if end < len(self.text) or self.ended or isinstance(value, dict):
                    checked = _surrogates(decoder.checked(value), self.text, self.position, end)
                    self.line += self.text.count("\n", self.position, end)
                    self.position = end
                    return checked
            self.grow()

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the fault may be due only to the end of the window."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _LONGEST_TOKEN

    def _broken(self, error: json.JSONDecodeError) -> AfzalError:
        is_cut = error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated string")
        line = self.line + self.text.count("\n", self.position, error.pos)
        column = error.pos - self.text.rfind("\n", 0, error.pos)
        column += 0 if "\n" in self.text[: error.pos] else self._column
        return AfzalError(
            f"is not JSON: {_reason(error)} (column {column})",
            where=f"{self._name}:{line}",
            why="the file ends inside a row; was it cut off?" if is_cut else "",
            remedy="fix the file; --skip-bad cannot skip rows inside one JSON document (JSON lines can)",
        )


def first_fault(stream: BinaryIO, name: str) -> AfzalError:
    """The error for a stream that is not UTF-8, naming line and byte of the first fault."""
    decoder, offset, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    while True:
        data = stream.read(_CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", pending, error.start)
            return _not_utf8(error, offset - pending, f"{name}:{line}")
        if not data:
            return AfzalError("the file changed while it was read", where=name)
        offset += len(data)
        line += data.count(b"\n")


def _not_utf8(error: UnicodeDecodeError, before: int, where: str) -> AfzalError:
    """The error; ``before`` is the file offset of the decoded bytes."""
    return AfzalError(
        f"byte {before + error.start} (0x{error.object[error.start]:02x}) is not UTF-8",
        where=where,
        remedy="save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8",
    )


def _decode(decoder: _Decoder, line: bytes, offset: int) -> Row | Fault:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
        return Fault("not_utf8", f"byte {offset + position} of the file (0x{line[position]:02x}) is not UTF-8")
    if (row := decoder.decode_line(text)) is not None:
        return _surrogates(row, text, 0, len(text))
    try:
        value = decoder.checked(decoder.decode(text))
    except json.JSONDecodeError as error:
        return Fault("not_json", f"is not JSON: {_reason(error)} at character {error.pos + 1}")
    except RecursionError:
        return Fault("not_json", "is nested too deeply")
    except ValueError as error:
        return Fault("not_json", f"holds a number that cannot be read: {error}")
    return _surrogates(value, text, 0, len(text))


def _surrogates(value: Row | Fault, text: str, start: int, end: int) -> Row | Fault:
    """The value, or a fault if an escape like ``\\ud800`` left a lone surrogate: such text cannot be written or
    tokenised."""
    if isinstance(value, Fault) or text.find("\\", start, end) < 0 or text.find("\\u", start, end) < 0:
        return value
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Fault("not_utf8", "holds half of a surrogate pair (an escape such as \\ud800 on its own)")
    return value


def _reason(error: json.JSONDecodeError) -> str:
    """The message without a final "at", such as "unterminated string": the place is added by the caller."""
    return error.msg[:1].lower() + error.msg[1:].removesuffix(" starting at").removesuffix(" at")


def unfold_table(rows: Iterator[RawRow], name: str) -> Iterator[RawRow]:
    """The rows of a source; if its only row is a table, the rows of that table."""
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is None and (rows_ := _rows_inside(first.value)):
        yield from (RawRow(f"{name}[{key}][{n}]", row) for key, n, row in rows_)
        return
    table = table_rows(first.value) if second is None and isinstance(first.value, Mapping) else None
    if table is not None:
        yield from (RawRow(f"{name}[{n}]", row) for n, row in enumerate(table))
        return
    yield first
    if second is not None:
        yield second
        yield from rows


def table_rows(table: Row) -> list[Row] | None:
    """The rows of a table written by columns in any pandas layout; None if it is not such a table.

    That is an object of lists of equal length, or of objects with the same keys (``orient="columns"``), an object of
    rows by number (``"index"``), or ``columns`` and ``data`` (``"split"``). Messages are not columns: an object that
    contains some is one row.
    """
    values = list(table.values())
    columns, data = table.get("columns"), table.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=False)) for row in data] if all(map(_is_name, columns)) else None
    if not values or any(map(looks_like_messages, values)):
        return None
    if all(isinstance(column, list) for column in values):
        lengths = {len(column) for column in values}
        if len(lengths) != 1 or 0 in lengths:
            return None
        return [dict(zip(table, cells, strict=True)) for cells in zip(*values, strict=True)]
    if not all(isinstance(column, Mapping) for column in values):
        return None
    if all(map(_is_number, table)):
        return values
    keys = [tuple(column) for column in values]
    if not keys[0] or any(names != keys[0] for names in keys) or not all(map(_is_number, keys[0])):
        return None
    return [{name: column[number] for name, column in table.items()} for number in keys[0]]


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


_SPLITS = ("test", "validation", "valid", "dev", "eval")


def _rows_inside(value: Row | Fault) -> list[tuple[str, int, Row]]:
    """Rows of ``{"data": [{...}, ...]}``: an object that contains the table, alone or with other splits.

    If another list has the same length, both are columns.
    """
    if isinstance(value, Fault) or len(value) > 3:
        return []
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
    table = next((key for key in lists if key in ("data", "rows", "instances", "examples", "train")), None)
    if table is None or not lists[table] or not isinstance(lists[table][0], Mapping):
        return []
    if any(len(rows) == len(lists[table]) for key, rows in lists.items() if key not in (table, *_SPLITS)):
        return []
    return [(table, n, row if isinstance(row, Mapping) else {}) for n, row in enumerate(lists[table])]


def _skip_line(stream: BinaryIO, line: bytes) -> int:
    total = len(line)
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)
        total += len(line)
    return total
