"""Images and sounds as rows write them: parts of messages, cells of columns, and marks in texts."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.data.fields import Row, RowError, UnusableError, kind
from afzal.media import Media, MediaKind

COLUMNS: dict[str, MediaKind] = {
    "images": "image",
    "image": "image",
    "image_path": "image",
    "audios": "audio",
    "audio": "audio",
    "audio_path": "audio",
}
"""Fields of a row that contain media, with their kind."""

_UNREAD = ("video", "videos", "rejected_image", "rejected_images", "rejected_audios", "rejected_videos")

_NAMES = frozenset((*COLUMNS, *_UNREAD))

MARK = re.compile("<(image|audio)>")
"""The mark in a text for an image or a sound of the columns."""

_TYPES: dict[str, MediaKind] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
}
_PAYLOAD = "image", "image_url", "audio", "audio_url", "input_audio", "path", "url", "bytes", "base64", "data"
_BESIDE = frozenset({"type", "sha256", "detail", "format", "index"})

RawMedia = str | bytes | Media


def kind_of(part: Mapping[str, Any]) -> MediaKind | None:
    """Whether a content part is an image or a sound; None for anything else."""
    return _TYPES.get(str(part.get("type")))


def payload(part: Mapping[str, Any]) -> Any:
    """The path, URL or bytes in a media part; None if the part only marks a place.

    Raises:
        RowError: it has several, or has an unknown field.
    """
    sources = [name for name in _PAYLOAD if part.get(name) is not None]
    unknown = [name for name in part if name not in _PAYLOAD and name not in _BESIDE and part[name] != ""]
    if unknown:
        raise RowError("wrong_type", "", f"a part of type {part['type']} holds '{unknown[0]}', which is not read")
    if {"path", "bytes"} == set(sources):
        return {name: part[name] for name in sources}
    if len(sources) > 1:
        raise RowError("wrong_type", "", f"a part of type {part['type']} holds both '{sources[0]}' and '{sources[1]}'")
    if not sources:
        return None
    raw = part[sources[0]]
    if sources[0] in ("base64", "data") and isinstance(raw, str):
        return _decoded(raw)
    return raw


def path_or_bytes(value: Any) -> RawMedia:
    """A path, or the bytes, of a value as files, ``datasets`` and servers write it.

    Raises:
        RowError: the value is neither, or its base64 cannot be decoded.
    """
    if isinstance(value, str | Media):
        return _of_data_address(value) if isinstance(value, str) and value[:5].lower() == "data:" else value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if type(value).__module__.startswith("PIL."):
        return _png(value)
    raise RowError("wrong_type", "", f"an image or a sound is {kind(value)}, neither a path nor bytes")


def names_media(row: Row) -> bool:
    """Whether a row has a field whose name is used for media."""
    return not row.keys().isdisjoint(_NAMES)


def column_values(row: Row) -> dict[MediaKind, list[Any]]:
    """The media of a row's columns by kind, in order; a null means no media.

    Raises:
        UnusableError: the row has video, or separate media for one answer's prompt.
        RowError: a list holds a null, or two columns hold media of one kind.
    """
    if not names_media(row):
        return {}
    if unread := next((name for name in _UNREAD if _is_held(row.get(name))), None):
        reason = "video is not read" if "video" in unread else "answers to different prompts are not a pair"
        raise UnusableError("media", f"'{unread}': {reason}")
    filled = {name: value for name in COLUMNS if _is_held(value := row.get(name))}
    values: dict[MediaKind, list[Any]] = {}
    for name, value in filled.items():
        if COLUMNS[name] in values:
            raise RowError("wrong_type", name, f"and another column both hold media of the kind {COLUMNS[name]}")
        values[COLUMNS[name]] = list(value) if isinstance(value, list | tuple) else [value]
        if any(entry is None for entry in values[COLUMNS[name]]):
            raise RowError("wrong_type", name, "holds a null among its media")
    return values


def has_columns(row: Row) -> bool:
    """Whether a row has non-empty media columns."""
    return not row.keys().isdisjoint(COLUMNS) and any(_is_held(row.get(name)) for name in COLUMNS)


def marked(text: str) -> tuple[dict[str, Any], ...]:
    """A text as parts, with a part without payload at each mark."""
    parts: list[dict[str, Any]] = []
    for n, fragment in enumerate(MARK.split(text)):  # texts and kinds alternate
        if n % 2:
            parts.append({"type": fragment})
        elif fragment:
            parts.append({"type": "text", "text": fragment})
    return tuple(parts)


def _is_held(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {} and value != b""


def _of_mapping(value: Mapping[str, Any]) -> RawMedia:
    fields_held = {name: entry for name, entry in value.items() if entry is not None}
    if "array" in fields_held and "sampling_rate" in fields_held:
        return _wave(fields_held["array"], fields_held["sampling_rate"])
    for name in ("bytes", "data", "base64"):
        if name in fields_held:
            return (
                _decoded(fields_held[name]) if isinstance(fields_held[name], str) else path_or_bytes(fields_held[name])
            )
    for name in ("path", "url"):
        if isinstance(fields_held.get(name), str):
            return path_or_bytes(fields_held[name])
    fields = ", ".join(map(str, fields_held)) or "nothing"
    raise RowError("wrong_type", "", f"an image or a sound is an object of {fields}: it needs path, bytes or url")


def _of_data_address(text: str) -> bytes:
    head, comma, rest = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RowError("media_broken", "", "is a data: URL that is not base64")
    return _decoded(rest)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError("media_broken", "", "holds text that is not base64") from None


def _png(image: Any) -> bytes:
    import io

    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _wave(samples: Any, rate: Any) -> bytes:
    """Samples, ``[frames]`` or ``[channels, frames]``, as a WAV file of 32-bit floats."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1 <= rate <= 2**31:
        raise RowError("wrong_type", "", f"sampling_rate is {kind(rate)}, not a number of samples per second")
    lists = samples.tolist() if hasattr(samples, "tolist") else samples
    channels = list(lists) if isinstance(lists, Sequence) and lists and isinstance(lists[0], Sequence) else [lists]
    try:
        data = array("f", [value for frame in zip(*channels, strict=True) for value in frame])
    except (TypeError, ValueError, OverflowError):
        raise RowError("wrong_type", "", "array is not a list of numbers, or of equally long lists of them") from None
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        data.byteswap()
    n, content = len(channels), data.tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, n, int(rate), int(rate) * 4 * n, 4 * n, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body
