"""Conversations as OpenAI-compatible servers read them, and as cache keys hash them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afzal.data.mediafiles import format_of
from afzal.errors import AfzalError
from afzal.media import Media, part_to_json

Content = str | tuple[Mapping[str, Any], ...]
"""A text, or text and media parts, as in :class:`afzal.records.Message`."""


def cache_key_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as hashed for a cache key: media by the hash of their bytes."""
    return [{**m, "content": _map_parts(m["content"], part_to_json)} for m in messages]


def for_server(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the format of OpenAI-compatible servers: images as ``image_url`` with a data URL, sounds as
    ``input_audio``. Formats that these servers do not list (BMP; FLAC, OGG) are sent as PNG and WAV.

    Raises:
        AfzalError: a medium has changed, or the library that converts it is missing.
    """
    return [{**m, "content": _map_parts(m["content"], _server_part)} for m in messages]


def _map_parts(body: Content, of: Callable[[Mapping[str, Any]], dict[str, Any]]) -> str | list[dict[str, Any]]:
    return body if isinstance(body, str) else [of(part) for part in body]


_IMAGES = ("png", "jpeg", "gif", "webp")
_SOUNDS = ("wav", "mp3")


def _server_part(part: Mapping[str, Any]) -> dict[str, Any]:
    media = part.get("media")
    if not isinstance(media, Media):
        return dict(part)
    try:
        data = media.read()
    except (OSError, ValueError) as error:
        raise AfzalError(f"cannot read {media.name or media.kind}", why=str(error)) from None
    known = format_of(data)
    format = known[1] if known else ""
    if media.kind == "image":
        if format not in _IMAGES:
            data, format = _as_png(media), "png"
        return {"type": "image_url", "image_url": {"url": f"data:image/{format};base64,{_base64(data)}"}}
    if format not in _SOUNDS:
        data, format = _as_wav(media, data), "wav"
    return {"type": "input_audio", "input_audio": {"data": _base64(data), "format": format}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _as_png(media: Media) -> bytes:
    from afzal.tokens.media import decode_image

    out = io.BytesIO()
    decode_image(media).save(out, "PNG")
    return out.getvalue()


def _as_wav(media: Media, data: bytes) -> bytes:
    from afzal.tokens.media import decoding

    out = io.BytesIO()
    with decoding(media):
        import soundfile

        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
        soundfile.write(out, samples, rate, format="WAV", subtype="PCM_16")
    return out.getvalue()
