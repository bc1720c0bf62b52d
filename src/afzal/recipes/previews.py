"""Small copies of the images and sounds in a run's samples, for display on its page."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from afzal import runs
from afzal.records import Media
from afzal.tokens.media import decode_image, decode_sound, decoding

FOLDER = "media"
_SIDE = 256  # pixels of the longer side
_SECONDS = 10.0
_RATE = 16000


def keep_previews(media: Iterable[Media], run: Path) -> dict[str, dict[str, str]]:
    """Write a JPEG of at most 256 pixels a side, or an MP3 of the first 10 s, of each medium into ``run/media``.

    Returns:
        By SHA-256, the entry for a line of ``samples.jsonl``: ``kind``, ``file`` (relative to ``run``) and ``name``.

    Raises:
        AfzalError: a medium cannot be read, or the library that decodes it is missing.
    """
    previews: dict[str, dict[str, str]] = {}
    for medium in media:
        if medium.sha256 not in previews:
            ending, content = ("jpg", _jpeg(medium)) if medium.kind == "image" else ("mp3", _mp3(medium))
            file = f"{FOLDER}/{medium.sha256}.{ending}"
            (run / FOLDER).mkdir(exist_ok=True)
            runs.atomic_write(run / file, content)
            previews[medium.sha256] = {"kind": medium.kind, "file": file, "name": medium.name}
    return previews


def _jpeg(media: Media) -> bytes:
    image = decode_image(media)
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def _mp3(media: Media) -> bytes:
    samples = decode_sound(media, _RATE)[: int(_SECONDS * _RATE)]
    out = io.BytesIO()
    with decoding(media):
        import soundfile

        soundfile.write(out, samples.clip(-1, 1), _RATE, format="MP3")
    return out.getvalue()
