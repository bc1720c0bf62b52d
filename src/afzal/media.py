"""An image or a sound of a row: its bytes, its name in the row, and where to read it.

A medium is identified by its bytes. Two files with the same bytes are one medium whatever their names, and two
different media under one name never share a key: everything that hashes or compares turns uses only ``kind`` and
``sha256``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

MediaKind = Literal["image", "audio"]

KINDS: tuple[MediaKind, ...] = ("image", "audio")


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a sound.

    Attributes:
        kind: ``image`` or ``audio``.
        sha256: of the file's bytes, 64 hexadecimal digits. Only ``kind`` and ``sha256`` are compared and hashed.
        name: as written in the row, a path relative to the data's folder; writers write it back. "" if the row held the
            bytes.
        path: absolute, links resolved, inside the data's folder; "" if the row held the bytes.
        data: the bytes from the row (parquet, base64, ``datasets``); None if there is a path.
    """

    kind: MediaKind
    sha256: str
    name: str = field(default="", compare=False)
    path: str = field(default="", compare=False)
    data: bytes | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            OSError: the file can no longer be read.
            ValueError: the file has changed since the row was read.
        """
        if self.data is not None:
            return self.data
        content = Path(self.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{self.name or self.path} has changed since it was read: its SHA-256 differs")
        return content


def in_row(kind: MediaKind, data: bytes, name: str = "") -> Media:
    """The medium whose bytes are in the row itself."""
    return Media(kind, hashlib.sha256(data).hexdigest(), name, data=data)


def named_from(media: Media, folder: Path) -> Media:
    """The medium with its name relative to a folder; unchanged if its file is elsewhere or its bytes are in the row."""
    if not media.path or not Path(media.path).is_relative_to(folder):
        return media
    return replace(media, name=Path(media.path).relative_to(folder).as_posix())


def media_part(media: Media) -> dict[str, Any]:
    """The medium as a part of a message's content."""
    return {"type": media.kind, "media": media}


def media_in(content: str | tuple[Mapping[str, Any], ...]) -> Iterator[Media]:
    """The media of a message's content, in reading order."""
    if not isinstance(content, str):
        yield from (part["media"] for part in content if isinstance(part.get("media"), Media))


def part_to_json(part: Mapping[str, Any]) -> dict[str, Any]:
    """A content part as JSON; a medium becomes ``{"type", "sha256"}``, so equal JSON means equal bytes."""
    media = part.get("media")
    return {"type": media.kind, "sha256": media.sha256} if isinstance(media, Media) else dict(part)


def part_to_row(part: Mapping[str, Any]) -> dict[str, Any]:
    """A content part as JSON for a data file; a medium also has its name, or its bytes as a ``data:`` URL."""
    media = part.get("media")
    if not isinstance(media, Media):
        return dict(part)
    return {"type": media.kind, media.kind: media.name if media.path else data_address(media), "sha256": media.sha256}


def data_address(media: Media) -> str:
    """The bytes of a medium as a ``data:`` URL; the MIME type is generic, since decoders look at the bytes."""
    return f"data:{media.kind}/*;base64,{base64.b64encode(media.read()).decode()}"
