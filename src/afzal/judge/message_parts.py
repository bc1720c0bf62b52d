"""Images and sounds in the requests to a judge, each at its place in the text.

A template renders text only. So each medium is replaced by a mark that occurs nowhere in the request, and the rendered
text is split at the marks again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from afzal.data.mediafiles import format_of
from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.media import Media, media_part, part_to_json
from afzal.records import Message, Turns, media_of, turns_to_json

Content = str | tuple[Mapping[str, Any], ...]
"""A text, or text and media parts, as in :class:`afzal.records.Message`."""


def content(render: Callable[..., str], values: Mapping[str, Turns]) -> Content:
    """The values rendered by ``render``, with every image and sound in its place.

    Raises:
        AfzalError: the rendered text lacks one of them.
    """
    if not any(media_of(turns) for turns in values.values()):
        return render(**{name: full_text(turns) for name, turns in values.items()})
    about = json.dumps([turns_to_json(turns) for turns in values.values()], ensure_ascii=False)
    token = int(hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()[:24], 16)
    numbers = count()
    media = [m for turns in values.values() for m in media_of(turns)]
    text = render(**{name: _with_marks(turns, token, numbers) for name, turns in values.items()})
    pieces = re.split(rf"\[media {token} (\d+)\]", text)
    lost = [m for n, m in enumerate(media) if str(n) not in pieces[1::2]]
    if lost:
        raise AfzalError(
            f"the judge's prompt leaves out an {lost[0].kind} of the row: {lost[0].name or lost[0].sha256[:12]}",
            where="prompt",
            remedy="write {{ prompt }}, {{ first }} and {{ second }} (or {{ answer }}) without filters",
        )
    parts: list[Mapping[str, Any]] = []
    for words, number in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        parts += [{"type": "text", "text": words}] if words else []
        parts += [media_part(media[int(number)])] if number is not None else []
    return tuple(parts)


def _with_marks(turns: Turns, token: int, numbers: Iterator[int]) -> str:
    """The text of the turns with marks for media."""
    if isinstance(turns, str):
        return turns
    spelled = []
    for message in turns:
        parts = message.content
        if not isinstance(parts, str):
            parts = tuple(
                {"type": "text", "text": f"[media {token} {next(numbers)}]"} if "media" in part else part
                for part in parts
            )
        spelled.append(Message(message.role, parts))
    return full_text(tuple(spelled))


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
