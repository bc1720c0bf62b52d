"""Recognise a file's kind by its first bytes, if its name says otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from afzal.errors import AfzalError

HEAD = 256  # bytes that identify the kind and the encoding
_UNPACK = "unpack it"
_NAMED = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt))?(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: its first bytes, its description, and its name's suffix or another remedy."""

    begins: re.Pattern[bytes]
    what: str
    suffix: str = ""
    remedy: str = _UNPACK

    def renamed(self, name: str) -> str:
        """A name that says what the file is: ``prefs.jsonl`` as ``prefs.parquet`` or ``prefs.jsonl.gz``."""
        stem = name.removesuffix(".gz") if self.suffix == ".gz" else _NAMED.sub("", name)
        return f"{stem}{self.suffix}"


# A text may begin with the letters PAR1, ARROW1 or BZh; the bytes after them never occur in text.
_KINDS = (
    Kind(re.compile(rb"PAR1\x15"), "a parquet file", ".parquet"),
    Kind(re.compile(rb"ARROW1\x00\x00|\xff{4}"), "an arrow file", ".arrow"),
    Kind(re.compile(rb"\x1f\x8b"), "compressed with gzip", ".gz"),
    Kind(re.compile(rb"PK\x03\x04"), "a zip archive", remedy="unpack it; of a spreadsheet, save the table as .csv"),
    Kind(re.compile(rb"\x28\xb5\x2f\xfd"), "compressed with zstd"),
    Kind(re.compile(rb"BZh[1-9]1AY&SY"), "compressed with bzip2"),
    Kind(re.compile(rb"\xfd7zXZ\x00"), "compressed with xz"),
    Kind(re.compile(rb"SQLite format 3\x00"), "an SQLite database", remedy="export its table, as .csv or JSON lines"),
)
_JSON = Kind(re.compile(rb"(\xef\xbb\xbf)?\s*[{\[]"), "JSON text", ".jsonl")


def refuse_foreign_text(head: bytes, name: str) -> None:
    """Raise AfzalError if a text begins with bytes of another encoding, or is a file of another kind."""
    if encoding := other_encoding(head):
        command = f"iconv -f {encoding} -t UTF-8 {Path(name).name} > utf8-{Path(name).name}"
        remedy = f"save the file as UTF-8, for example with: {command}"
        raise AfzalError(f"the file is {encoding}, not UTF-8", where=name, remedy=remedy)
    if kind := _kind(head):
        raise _called_otherwise(kind, name)


_MARKS = (  # byte-order marks; that of UTF-32LE begins with that of UTF-16LE
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_HIGH_BYTE = 0x20  # high bytes of the letters of most alphabets are below it; UTF-8 text has hardly any such bytes


def other_encoding(head: bytes) -> str:
    """The name of the encoding, UTF-16 or UTF-32, in which a text begins; "" if it is neither.

    Without a byte-order mark, it is recognised by the high bytes of its letters, and the name says their order. Text
    that begins in Chinese, Japanese or Korean letters is not recognised; JSON never does.
    """
    if named := next((encoding for mark, encoding in _MARKS if head.startswith(mark)), ""):
        return named
    if b"\x00" not in head or len(head) < 4:
        return ""
    zeros = [_share(head[k::4], 1) for k in range(4)]
    if min(zeros[2:]) == 1 > zeros[0] or min(zeros[:2]) == 1 > zeros[3]:
        return "UTF-32LE" if zeros[0] < 1 else "UTF-32BE"
    first, second = (_share(head[k::2], _HIGH_BYTE) for k in (0, 1))
    if max(first, second) < 0.8 or min(first, second) > 0.5:
        return ""
    return "UTF-16LE" if second > first else "UTF-16BE"


def _share(values: bytes, bound: int) -> float:
    """The share of bytes below a bound."""
    return sum(value < bound for value in values) / len(values)


def other_kind(path: Path, suffix: str) -> AfzalError | None:
    """The error that says what a file is if it cannot be read as its ``suffix``; None if its first bytes do not show
    it."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    kind = _kind(head) or (_JSON if suffix != ".gz" and _JSON.begins.match(head) else None)
    return None if kind is None or kind.suffix == suffix else _called_otherwise(kind, str(path))


def _kind(head: bytes) -> Kind | None:
    return next((kind for kind in _KINDS if kind.begins.match(head)), None)


def _called_otherwise(kind: Kind, name: str) -> AfzalError:
    if not kind.suffix or (kind.suffix == ".gz" and name.lower().endswith((".parquet", ".arrow"))):
        return AfzalError(f"the file is {kind.what}", where=name, remedy=kind.remedy)
    remedy = f"rename it: {kind.renamed(Path(name).name)}"
    return AfzalError(f"the file is {kind.what}, but its name does not say so", where=name, remedy=remedy)
