"""Images and sounds as a model's processor reads them: their placeholder tokens and their arrays.

A processor expands each marker of the chat template into as many placeholder tokens as the model has features for that
medium. Each medium is processed separately, so the result depends on nothing else in its row.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import Any, Literal

import numpy as np

from afzal.errors import AfzalError
from afzal.media import KINDS, Media, MediaKind
from afzal.tokens.template import TurnError

_KEPT = 64
"""The number of media whose arrays stay in memory; others are recomputed when a batch needs them."""

_TYPE_NAMES = ("mm_token_type_ids", "token_type_ids")
_TEXT = frozenset({"input_ids", "attention_mask", *_TYPE_NAMES, "text_replacement_offsets"})
_EXTRAS = {"image": ("vision", "pillow"), "audio": ("audio", "soundfile")}


@dataclass(frozen=True, slots=True)
class Change:
    """How a medium is changed: not at all, ``blank`` (content removed), or a random ``piece`` by ``seed`` in its
    place."""

    kind: Literal["", "blank", "piece"] = ""
    seed: int = 0


SEEN, BLANK = Change(), Change("blank")


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """An image or a sound of a tree: its identity, and access to the arrays that a model reads.

    Attributes:
        key: identifies the bytes, the processor and the change; equal keys have equal arrays.
        change: applied to the image or sound before the processor reads it.
    """

    media: Media
    reader: MediaReader
    key: str
    change: Change = SEEN

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Keyword arguments for the model; each array's first axis belongs to this medium."""
        return self.reader.arrays(self.media, self.change)

    def without_content(self) -> Medium:
        """The medium blanked, with the same number of tokens."""
        return Medium(self.media, self.reader, f"{self.key}:blank", BLANK)

    def cropped(self, seed: int) -> Medium:
        """The medium replaced by a small random piece of it, with the same number of tokens: see
        :func:`decode_image`."""
        return Medium(self.media, self.reader, f"{self.key}:piece-{seed}", Change("piece", seed))


@dataclass(frozen=True, eq=False)
class MediaReader:
    """A processor that handles one medium at a time.

    Attributes:
        processor: a `transformers` processor with ``image_token`` or ``audio_token``.
        name: a hash of the processor's configuration, part of the media keys.
    """

    processor: Any
    name: str
    _read: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_read", lru_cache(maxsize=_KEPT)(self._process))

    def markers(self) -> dict[MediaKind, str]:
        """The chat template's marker for each kind of medium that the processor reads."""
        markers: dict[MediaKind, str] = {}
        for kind in KINDS:
            token = getattr(self.processor, f"{kind}_token", None)
            if token is not None and self._part(kind) is not None:
                markers[kind] = str(token)
        return markers

    def medium(self, media: Media) -> Medium:
        """The :class:`Medium` of a tree."""
        return Medium(media, self, f"{media.kind}:{media.sha256}:{self.name}")

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """Rendered text with every marker replaced by the tokens of its medium.

        Raises:
            TurnError: the processor does not read such media, or the template wrote a different number of markers.
        """
        markers = self.markers()
        if unread := sorted({m.kind for m in media} - markers.keys()):
            raise TurnError("media_not_supported", f"the model reads no {' and no '.join(unread)}")
        waiting = {kind: iter([m for m in media if m.kind == kind]) for kind in markers}
        for kind, marker in markers.items():
            n_media, n_markers = sum(m.kind == kind for m in media), text.count(marker)
            if n_media != n_markers:
                raise TurnError("media_mismatch", f"{n_media} x {kind} in the row, {n_markers} in the rendered prompt")
        kinds = {marker: kind for kind, marker in markers.items()}
        pattern = "|".join(map(re.escape, kinds))
        return re.sub(pattern, lambda match: self.replacement(next(waiting[kinds[match.group()]])), text)

    def replacement(self, media: Media) -> str:
        """The text for a medium: its placeholder tokens and the processor's tokens around them."""
        return self._read(media, SEEN)[0]

    def arrays(self, media: Media, change: Change = SEEN) -> Mapping[str, np.ndarray]:
        """The model's inputs for a medium, see :meth:`Medium.arrays`."""
        return self._read(media, change)[1]

    def types(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Which tokens are media placeholders (int64 ``[P]``), under the model's name for it; empty if the model has
        none.

        Models use it for multi-axis positions of media, or to let the tokens of one medium see each other.
        """
        names = set(self.processor.model_input_names) & set(_TYPE_NAMES)
        if not names:
            return {}
        (types,) = self.processor.create_mm_token_type_ids([ids.tolist()])
        return {min(names): np.asarray(types, dtype=np.int64)}

    def _part(self, kind: MediaKind) -> Any:
        names = ("image_processor",) if kind == "image" else ("feature_extractor", "audio_processor")
        return next((part for n in names if (part := getattr(self.processor, n, None)) is not None), None)

    def _process(self, media: Media, change: Change) -> tuple[str, dict[str, np.ndarray]]:
        marker = self.markers()[media.kind]
        arguments: dict[str, Any] = {"text": [marker], "return_tensors": "np", "add_special_tokens": False}
        arguments["return_text_replacement_offsets"] = True
        if media.kind == "image":
            arguments["images"] = [[decode_image(media, change)]]
        else:
            rate = int(self._part("audio").sampling_rate)
            arguments |= {"audio": [decode_sound(media, rate, change)], "sampling_rate": rate}
        output = self.processor(**arguments)
        ((offset,),) = output["text_replacement_offsets"]
        return offset["replacement"], {name: np.asarray(v) for name, v in output.items() if name not in _TEXT}


def reader_of(processor: Any) -> MediaReader | None:
    """The media reader of a processor, named by a hash of its configuration; None without a processor."""
    if processor is None:
        return None
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return MediaReader(processor, hashlib.sha256(settings.encode()).hexdigest()[:16])


def decode_image(media: Media, change: Change = SEEN) -> Any:
    """A PIL image in RGB, rotated according to its EXIF data; a change keeps its size.

    Blank is grey. A piece is a random part of 1 to 20% of the area with sides in a ratio between 3 : 4 and 4 : 3,
    enlarged to the full size, as in mDPO (Wang et al. 2024, arXiv 2406.11839).

    Raises:
        AfzalError: pillow is not installed, or the bytes are not an image.
    """
    with decoding(media):
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(Image.open(io.BytesIO(media.read()))).convert("RGB")
        if change.kind == "blank":
            return Image.new("RGB", image.size, (128, 128, 128))
        if change.kind == "piece":
            return image.resize(image.size, Image.Resampling.BICUBIC, box=_random_crop(image.size, change.seed))
        return image


def decode_sound(media: Media, rate: int, change: Change = SEEN) -> np.ndarray:
    """float32 ``[n]``, the mean over channels at ``rate`` samples per second; a change keeps its length.

    Blank is silence. A piece is a random stretch of 1 to 20% of the length, in its original place, with silence around
    it.

    Raises:
        AfzalError: soundfile is not installed, or the bytes are not a sound.
    """
    with decoding(media):
        import soundfile
        from scipy.signal import resample_poly

        samples, source_rate = soundfile.read(io.BytesIO(media.read()), dtype="float32", always_2d=True)
        mono = samples.mean(1)
        if source_rate != rate:
            mono = resample_poly(mono, rate // gcd(rate, source_rate), source_rate // gcd(rate, source_rate)).astype(
                np.float32
            )
        if not change.kind:
            return mono
        changed = np.zeros_like(mono)
        if change.kind == "piece":
            rng = np.random.default_rng(change.seed)
            n = max(1, round(len(mono) * rng.uniform(*_PIECE)))
            start = int(rng.integers(len(mono) - n + 1))
            changed[start : start + n] = mono[start : start + n]
        return changed


_PIECE = (0.01, 0.2)  # of the area of a picture, or of the length of a sound


def _random_crop(size: tuple[int, int], seed: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random piece of an image of this width and height, in pixels."""
    rng = np.random.default_rng(seed)
    area, ratio = rng.uniform(*_PIECE), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    pixels = area * size[0] * size[1]
    width, height = min(np.sqrt(pixels * ratio), size[0]), min(np.sqrt(pixels / ratio), size[1])
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return float(left), float(top), float(left + width), float(top + height)


@contextmanager
def decoding(media: Media) -> Iterator[None]:
    """Turn whatever a decoder raises in the block into an error about the medium."""
    name = media.name or media.sha256[:12]
    try:
        yield
    except ModuleNotFoundError as error:
        extra, package = _EXTRAS[media.kind]
        raise AfzalError(
            f"{package} is needed to read {name} and is not installed", remedy=f"pip install 'afzal[{extra}]'"
        ) from error
    except (OSError, ValueError, RuntimeError, SyntaxError) as error:
        raise AfzalError(f"{name} cannot be read as {media.kind}", why=str(error), remedy="replace the file") from error


def model_inputs(media: Sequence[Medium]) -> dict[str, np.ndarray]:
    """The inputs of a forward pass for all its media, in token order.

    Arrays are joined on their first axis. For models that keep one row of images per conversation (Idefics3), they are
    joined on the second axis, in one row, since such models concatenate the images of all rows anyway.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for medium in media:
        for name, array in medium.arrays().items():
            by_name.setdefault(name, []).append(array)
    in_rows = any(arrays[0].ndim == 5 for arrays in by_name.values())
    return {name: _joined(arrays, int(in_rows and arrays[0].ndim >= 4)) for name, arrays in by_name.items()}


def _joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Arrays concatenated along ``axis``, with the other axes padded with zeros."""
    widest = [max(a.shape[d] for a in arrays) for d in range(arrays[0].ndim)]
    padded = []
    for array in arrays:
        padding = [(0, 0 if d == axis else widest[d] - size) for d, size in enumerate(array.shape)]
        padded.append(np.pad(array, padding) if any(after for _, after in padding) else array)
    return np.concatenate(padded, axis=axis)


def texts_of(content: Any) -> Iterator[str]:
    """The texts among the parts of a message."""
    if isinstance(content, str):
        yield content
    else:
        texts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        yield from (text for text in texts if isinstance(text, str))
