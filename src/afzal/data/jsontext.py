"""JSON and JSON lines, read so that every fault names its true line.

``json.loads`` lets duplicate keys, NaN and lone surrogates through; here they are faults of their row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from afzal.data.fields import Row, kind
from afzal.errors import AfzalError

MAX_LINE_BYTES = 256 * 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be read: ``reason`` is a code, ``detail`` a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as found: where (``file:line``), and its fields or its fault."""

    where: str
    value: Row | Fault


class _Constant(float):
    """NaN or an infinity spelled out in JSON."""


class _Decoder:
    """A JSON decoder that notes what the standard one passes over."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._constants: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def whole(self, text: str) -> Any:
        self._forget()
        return self._json.decode(text)

    def next(self, text: str, at: int) -> tuple[Any, int]:
        self._forget()
        return self._json.raw_decode(text, at)

    def _forget(self) -> None:
        self._faults.clear()
        self._constants.clear()

    def checked(self, value: Any) -> Row | Fault:
        """The value just decoded, if it is an object without faults."""
        if self._faults:
            return self._faults[0]
        return value if isinstance(value, Mapping) else Fault("not_an_object", f"is {kind(value)}, not a JSON object")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._faults.append(Fault("duplicate_key", f"field '{twice}' occurs twice in one object"))
        if self._constants and (field := next((name for name, value in pairs if _holds_constant(value)), None)):
            detail = f"field '{field}' has {self._constants[0]}, which is not JSON; write null or a number"
            self._faults.append(Fault("not_json", detail))
        return made

    def _constant(self, name: str) -> float:
        self._constants.append(name)
        return _Constant(name)


def _holds_constant(value: Any) -> bool:
    return isinstance(value, _Constant) or (isinstance(value, list) and any(map(_holds_constant, value)))


def read_lines(stream: BinaryIO, name: str) -> Iterator[Raw]:
    """Rows of a JSON-lines stream, one line at a time; blank lines and a leading byte-order mark are passed over."""
    decoder, offset, number = _Decoder(), 0, 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            skipped = _skip_line(stream, line)
            yield Raw(where, Fault("line_too_long", f"is longer than {MAX_LINE_BYTES // 2**20} MiB"))
            offset += skipped
            continue
        content = line.removeprefix(_BOM) if number == 1 else line
        if number == 1:
            refuse_foreign_text(content, name)
        if content.strip():
            value = _decode(decoder, content, offset + len(line) - len(content))
            if isinstance(value, Fault) and value.reason == "not_json" and not line.endswith(b"\n"):
                value = Fault("not_json", f"{value.detail}; the file ends inside this row, was it cut off?")
            yield Raw(where, value)
        offset += len(line)


def read_array(data: bytes, name: str) -> Iterator[Raw]:
    """Rows of a JSON document: a list of objects, objects one after another, or an object that holds such a list."""
    text = decode_utf8(data.removeprefix(_BOM), name)
    decoder, at, line = _Decoder(), 0, 1
    in_list = text.lstrip().startswith("[")
    at, line = _skip(text, at, line, "[" if in_list else "")
    while at < len(text) and text[at] != "]":
        start, where = at, f"{name}:{line}"
        try:
            value, at = decoder.next(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(error, text, name) from None
        checked = _surrogates(decoder.checked(value), text, start, at)
        line += text.count("\n", start, at)
        if not in_list and (rows := _rows_inside(checked)):
            yield from (Raw(f"{name}[{key}][{n}]", row) for key, n, row in rows)
        else:
            yield Raw(where, checked)
        at, line = _skip(text, at, line, "," if in_list else "")
    if in_list and at >= len(text):
        raise AfzalError("the list is not closed", where=f"{name}:{line}", why="the file ends early; was it cut off?")
    if text[at + 1 :].strip():
        raise AfzalError("more text follows the end of the list", where=f"{name}:{line}", remedy="one list per file")


def decode_utf8(data: bytes, name: str) -> str:
    """Text of a whole file, or an error with the line and byte offset of the first byte that is not UTF-8."""
    refuse_foreign_text(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AfzalError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8",
            where=f"{name}:{line}",
            remedy="save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8",
        ) from None


def refuse_foreign_text(head: bytes, name: str) -> None:
    """Stop at files that are plainly another encoding or compressed."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        remedy = "save the file as UTF-8, for example with: iconv -f UTF-16 -t UTF-8"
        raise AfzalError("the file is UTF-16, not UTF-8", where=name, remedy=remedy)
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise AfzalError(
            "the file is compressed, but its name does not say so",
            where=name,
            remedy="unpack it, or for gzip let the name end in .gz",
        )


def _decode(decoder: _Decoder, line: bytes, offset: int) -> Row | Fault:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        return Fault("not_utf8", f"byte {offset + at} of the file (0x{line[at]:02x}) is not UTF-8")
    try:
        value = decoder.checked(decoder.whole(text))
    except json.JSONDecodeError as error:
        return Fault("not_json", f"is not JSON: {_reason(error)} at character {error.pos + 1}")
    except RecursionError:
        return Fault("not_json", "is nested too deeply")
    except ValueError as error:
        return Fault("not_json", f"holds a number that cannot be read: {error}")
    return _surrogates(value, text, 0, len(text))


def _surrogates(value: Row | Fault, text: str, start: int, end: int) -> Row | Fault:
    """A fault if an escape like ``\\ud800`` left half a character: such text cannot be written or tokenised."""
    if isinstance(value, Fault) or text.find("\\u", start, end) < 0:
        return value
    if text.find("\\ud", start, end) < 0 and text.find("\\uD", start, end) < 0:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Fault("not_utf8", "holds half of a surrogate pair (an escape such as \\ud800 on its own)")
    return value


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg[:1].lower() + error.msg[1:]


def _broken(error: Exception, text: str, name: str) -> AfzalError:
    if not isinstance(error, json.JSONDecodeError):
        return AfzalError("is nested too deeply or holds a number that cannot be read", where=name)
    cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    return AfzalError(
        f"is not JSON: {_reason(error)} (column {error.colno})",
        where=f"{name}:{error.lineno}",
        why="the file ends inside a row; was it cut off?" if cut else "",
        remedy="mend the file; --skip-bad cannot skip rows inside one JSON document (JSON lines can)",
    )


def _skip(text: str, at: int, line: int, mark: str) -> tuple[int, int]:
    """Past white space, at most one ``mark``, and white space again; counts the lines gone by."""
    start = at
    while at < len(text) and (text[at].isspace() or (mark and text[at] == mark)):
        if text[at] == mark:
            mark = ""
        at += 1
    return at, line + text.count("\n", start, at)


def _rows_inside(value: Row | Fault) -> list[tuple[str, int, Row]]:
    """Rows of ``{"data": [{...}, ...]}``: an object whose only list of objects is the table."""
    if isinstance(value, Fault) or len(value) > 3:
        return []
    lists = [(key, rows) for key, rows in value.items() if key in ("data", "rows", "instances", "examples", "train")]
    return [
        (key, n, row if isinstance(row, Mapping) else {})
        for key, rows in lists[:1]
        if isinstance(rows, list)
        for n, row in enumerate(rows)
    ]


def _skip_line(stream: BinaryIO, line: bytes) -> int:
    total = len(line)
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)
        total += len(line)
    return total
