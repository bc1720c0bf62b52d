"""Check that bytes are the image or sound that a row claims: format, size and completeness.

The first bytes give the kind without any library. Pillow (extra ``vision``) and soundfile (extra ``audio``), if
installed, check further: size in pixels, length in seconds, and whether the file is cut off.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from afzal.data.fields import RowError
from afzal.media import MediaKind

MIB = 2**20
_IMAGES = ("PNG", "JPEG", "GIF", "WEBP", "BMP")  # never EPS and the like, which start other programs
_LAST_FRAMES = 4096
_LIBRARY = {"image": ("PIL", "vision"), "audio": ("soundfile", "audio")}


@dataclass(frozen=True, slots=True)
class MediaRules:
    """Where media files may be, and how large.

    Attributes:
        folder: base of relative paths, which no path may leave; "" for the data file's folder.
        max_mib: maximum size of a file, in MiB.
        max_megapixels: maximum size of an image, in millions of pixels; Pillow itself refuses more than 178.
        max_minutes: maximum length of a sound.
    """

    folder: str = ""
    max_mib: float = 64.0
    max_megapixels: float = 100.0
    max_minutes: float = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a media file: its format; pixels of an image; seconds, samples per second and channels of a sound.

    A value is 0 if the library that provides it is not installed.
    """

    format: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0


def missing_extra(kind: MediaKind) -> str:
    """How to install the library that inspects files of this kind; "" if it is installed."""
    package, extra = _LIBRARY[kind]
    return "" if find_spec(package) else f"pip install afzal[{extra}]"


def inspect(kind: MediaKind, data: bytes, rules: MediaRules) -> Facts:
    """Check a file and return its facts.

    Raises:
        RowError: it is of another kind, of an unsupported format, too large, broken, or cut off.
    """
    if not data:
        raise _broken_error("is empty")
    if len(data) > rules.max_mib * MIB:
        raise too_large(len(data), rules)
    media_format = format_of(data)
    if media_format is None or media_format[0] != kind:
        actual = f"holds {media_format[1]} ({media_format[0]})" if media_format else _unread(data)
        expected = "an image (png, jpeg, gif, webp, bmp)" if kind == "image" else "a sound (wav, flac, ogg, mp3)"
        raise RowError("media_wrong_type", "", f"{actual}, not {expected}")
    if missing_extra(kind):
        return Facts(media_format[1])
    return _image(data, media_format[1], rules) if kind == "image" else _sound(data, media_format[1], rules)


def too_large(size: int, rules: MediaRules) -> RowError:
    """The error for a file of ``size`` bytes."""
    return RowError("media_too_large", "", f"has {size / MIB:.1f} MiB, more than {rules.max_mib:g}")


def format_of(data: bytes) -> tuple[MediaKind, str] | None:
    """Kind and format by the first bytes; None if unknown."""
    if data[:4] == b"RIFF":
        riff: dict[bytes, tuple[MediaKind, str]] = {b"WEBP": ("image", "webp"), b"WAVE": ("audio", "wav")}
        return riff.get(data[8:12])
    for start, kind, name in _STARTS:
        if data.startswith(start):
            return kind, name
    is_frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06 != 0
    return ("audio", "mp3") if is_frame else None


_STARTS: tuple[tuple[bytes, MediaKind, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image", "png"),
    (b"\xff\xd8\xff", "image", "jpeg"),
    (b"GIF87a", "image", "gif"),
    (b"GIF89a", "image", "gif"),
    (b"BM", "image", "bmp"),
    (b"fLaC", "audio", "flac"),
    (b"OggS", "audio", "ogg"),
    (b"ID3", "audio", "mp3"),
)


def _image(data: bytes, name: str, rules: MediaRules) -> Facts:
    from PIL import Image

    most = rules.max_megapixels * 1e6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=_IMAGES)
        width, height = opened.size
    except Image.DecompressionBombError:
        raise RowError("media_too_large", "", "has more pixels than Pillow opens (178 million)") from None
    except Exception as error:  # the decoders raise many kinds
        raise _broken_error(f"is a broken {name} file ({_words(error)})") from None
    if width * height > most:
        detail = f"has {width} x {height} pixels, more than {rules.max_megapixels:g} million"
        raise RowError("media_too_large", "", detail)
    try:
        if name == "png":
            opened.verify()  # checks lengths and checksums of all chunks without unpacking them
        else:
            opened.draft("L", (max(1, width // 8), max(1, height // 8)))  # a JPEG is decoded at an eighth
            opened.load()
    except Exception as error:  # the decoders raise many kinds
        raise _broken_error(f"is a broken {name} file, or is cut off ({_words(error)})") from None
    return Facts(name, width, height)


def _sound(data: bytes, name: str, rules: MediaRules) -> Facts:
    import soundfile

    if name == "wav" and (lacking := _lacking(data)):
        raise _broken_error(f"is cut off: {lacking} bytes of its samples are missing")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            frames, rate, channels = sound.frames, sound.samplerate, sound.channels
            if frames > 60 * rules.max_minutes * rate:
                detail = f"lasts {frames / rate / 60:.1f} minutes, more than {rules.max_minutes:g}"
                raise RowError("media_too_large", "", detail)
            if not frames:
                raise _broken_error("holds no samples")
            n_frames = min(frames, _LAST_FRAMES)
            sound.seek(frames - n_frames)
            n_read = len(sound.read(n_frames, dtype="float32"))
    except RowError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise _broken_error(f"is a broken {name} file, or is cut off ({_words(error)})") from None
    if n_read < n_frames and name != "mp3":  # an mp3 file only estimates its length
        raise _broken_error(f"is cut off: {n_frames - n_read} of its last {n_frames} samples are missing")
    return Facts(name, seconds=frames / rate, rate=rate, channels=channels)


def _lacking(data: bytes) -> int:
    """Number of sample bytes missing from a WAV file compared with its header; streaming recorders announce the largest
    size."""
    offset = 12
    while offset + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        if name == b"data":
            return 0 if size in (0, 0x7FFFFFFF, 0xFFFFFFFF) else max(0, size - (len(data) - offset - 8))
        offset += 8 + size + (size & 1)
    return 0


def _broken_error(problem: str) -> RowError:
    return RowError("media_broken", "", problem)


def _unread(data: bytes) -> str:
    """A description of a file of unknown kind, as far as its first bytes show."""
    if _is_text(data):
        return "is text"
    is_video = data[4:8] == b"ftyp" or data[:4] == b"\x1aE\xdf\xa3" or (data[:4], data[8:11]) == (b"RIFF", b"AVI")
    return "is a video, or a sound in a video's container (mp4, webm, avi)" if is_video else "is of an unknown format"


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data[:1000].decode("utf-8", "strict")
    except UnicodeDecodeError:
        return False


def _words(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
