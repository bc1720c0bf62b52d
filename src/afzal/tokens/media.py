"""Images and sounds as a model's processor reads them: the tokens that stand for them, and the arrays they become.

A processor turns each marker of the chat template into as many placeholder tokens as the model has features for that
medium. Each medium is processed by itself, so what it becomes depends on nothing else in its row.
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
from afzal.records import Item, media_of
from afzal.tokens.template import TurnError

_KEPT = 64
"""Media whose arrays stay in memory; those of others are computed again when a batch needs them."""

_TYPE_NAMES = ("mm_token_type_ids", "token_type_ids")
_TEXT = frozenset({"input_ids", "attention_mask", *_TYPE_NAMES, "text_replacement_offsets"})
_EXTRAS = {"image": ("vision", "pillow"), "audio": ("audio", "soundfile")}


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a medium: nothing, all content taken out, or a random ``piece`` by ``seed`` in its place."""

    kind: Literal["", "blank", "piece"] = ""
    seed: int = 0


SEEN, BLANK = Change(), Change("blank")


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """An image or a sound of a tree: who it is, and how to get the arrays that a model reads.

    Attributes:
        key: names the bytes, the processor, and what was done to the arrays; equal keys have equal arrays.
        change: what is done to the picture or the sound before the processor reads it.
    """

    media: Media
    reader: MediaReader
    key: str
    change: Change = SEEN

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Keyword arguments of the model, each with the medium's own first axis."""
        return self.reader.arrays(self.media, self.change)

    def without_content(self) -> Medium:
        """The medium with nothing to see or to hear in it, and as many tokens."""
        return Medium(self.media, self.reader, f"{self.key}:blank", BLANK)

    def cropped(self, seed: int) -> Medium:
        """A small random piece of the medium in place of the whole, with as many tokens: see :func:`decode_image`."""
        return Medium(self.media, self.reader, f"{self.key}:piece-{seed}", Change("piece", seed))


@dataclass(frozen=True, eq=False)
class MediaReader:
    """A processor, asked about one medium at a time.

    Attributes:
        processor: a `transformers` processor with ``image_token`` or ``audio_token``.
        name: of what configures it, a part of the keys of media.
    """

    processor: Any
    name: str
    _read: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_read", lru_cache(maxsize=_KEPT)(self._process))

    def markers(self) -> dict[MediaKind, str]:
        """What a chat template writes for a medium of each kind that the processor reads."""
        markers: dict[MediaKind, str] = {}
        for kind in KINDS:
            token = getattr(self.processor, f"{kind}_token", None)
            if token is not None and self._part(kind) is not None:
                markers[kind] = str(token)
        return markers

    def medium(self, media: Media) -> Medium:
        """The medium of a tree."""
        return Medium(media, self, f"{media.kind}:{media.sha256}:{self.name}")

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """Rendered text with every marker turned into the tokens of its medium.

        Raises:
            TurnError: the processor does not read such media, or the template wrote another number of markers.
        """
        markers = self.markers()
        if unread := sorted({m.kind for m in media} - markers.keys()):
            raise TurnError("media_not_supported", f"the model reads no {' and no '.join(unread)}")
        waiting = {kind: iter([m for m in media if m.kind == kind]) for kind in markers}
        for kind, marker in markers.items():
            given, written = sum(m.kind == kind for m in media), text.count(marker)
            if given != written:
                raise TurnError("media_mismatch", f"{given} x {kind} in the row, {written} in the rendered prompt")
        kinds = {marker: kind for kind, marker in markers.items()}
        pattern = "|".join(map(re.escape, kinds))
        return re.sub(pattern, lambda found: self.replacement(next(waiting[kinds[found.group()]])), text)

    def replacement(self, media: Media) -> str:
        """The text that stands for a medium: its placeholder tokens, and what the processor puts around them."""
        return self._read(media, SEEN)[0]

    def arrays(self, media: Media, change: Change = SEEN) -> Mapping[str, np.ndarray]:
        """What the model reads of a medium, see :meth:`Medium.arrays`."""
        return self._read(media, change)[1]

    def types(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Which tokens stand for media (int64 ``[P]``), under the name that the model wants; empty where it does not.

        Models ask for it to place media on several axes of position, or to let the tokens of one see each other.
        """
        names = set(self.processor.model_input_names) & set(_TYPE_NAMES)
        if not names:
            return {}
        (made,) = self.processor.create_mm_token_type_ids([ids.tolist()])
        return {min(names): np.asarray(made, dtype=np.int64)}

    def _part(self, kind: MediaKind) -> Any:
        names = ("image_processor",) if kind == "image" else ("feature_extractor", "audio_processor")
        return next((part for n in names if (part := getattr(self.processor, n, None)) is not None), None)

    def _process(self, media: Media, change: Change) -> tuple[str, dict[str, np.ndarray]]:
        marker = self.markers()[media.kind]
        given: dict[str, Any] = {"text": [marker], "return_tensors": "np", "add_special_tokens": False}
        given["return_text_replacement_offsets"] = True
        if media.kind == "image":
            given["images"] = [[decode_image(media, change)]]
        else:
            rate = int(self._part("audio").sampling_rate)
            given |= {"audio": [decode_sound(media, rate, change)], "sampling_rate": rate}
        made = self.processor(**given)
        ((offset,),) = made["text_replacement_offsets"]
        return offset["replacement"], {name: np.asarray(v) for name, v in made.items() if name not in _TEXT}


def refuse_media(items: Sequence[Item], source: str, by: str, instead: str) -> None:
    """Refuse prompts that show images or sounds, for a command that keeps prompts as token ids.

    Args:
        source: the file of the prompts.
        by: the command, as messages name it.
        instead: what to do with such prompts.

    Raises:
        AfzalError: names the first of them.
    """
    shown = [item for item in items if media_of(item.prompt)]
    if not shown:
        return
    first = shown[0]
    raise AfzalError(
        f"{first.where or first.id} shows an {media_of(first.prompt)[0].kind}, and {by} reads prompts of text only",
        where=source,
        why=f"{len(shown)} of {len(items)} prompts have images or sounds, and a prompt is kept here as token ids alone",
        remedy=instead,
    )


def reader_of(processor: Any) -> MediaReader | None:
    """What reads media for a processor, named by all that configures it; None where there is no processor."""
    if processor is None:
        return None
    about = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return MediaReader(processor, hashlib.sha256(about.encode()).hexdigest()[:16])


def decode_image(media: Media, change: Change = SEEN) -> Any:
    """A PIL image in RGB, turned as its EXIF data say; after any change it has the same size.

    Blank is grey. A piece is a random part of 1 to 20 % of the area with sides in a ratio between 3 : 4 and 4 : 3,
    enlarged to the whole size, as mDPO takes it (Wang et al. 2024, arXiv 2406.11839).

    Raises:
        AfzalError: pillow is not installed, or the bytes are no image.
    """
    with decoding(media):
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(Image.open(io.BytesIO(media.read()))).convert("RGB")
        if change.kind == "blank":
            return Image.new("RGB", image.size, (128, 128, 128))
        if change.kind == "piece":
            return image.resize(image.size, Image.Resampling.BICUBIC, box=_box(image.size, change.seed))
        return image


def decode_sound(media: Media, rate: int, change: Change = SEEN) -> np.ndarray:
    """float32 ``[n]``, the mean over channels at ``rate`` samples a second; after any change it has the same length.

    Blank is silence. A piece is a random stretch of 1 to 20 % of the length where it was, with silence around it.

    Raises:
        AfzalError: soundfile is not installed, or the bytes are no sound.
    """
    with decoding(media):
        import soundfile
        from scipy.signal import resample_poly

        samples, own = soundfile.read(io.BytesIO(media.read()), dtype="float32", always_2d=True)
        mono = samples.mean(1)
        if own != rate:
            mono = resample_poly(mono, rate // gcd(rate, own), own // gcd(rate, own)).astype(np.float32)
        if not change.kind:
            return mono
        kept = np.zeros_like(mono)
        if change.kind == "piece":
            rng = np.random.default_rng(change.seed)
            n = max(1, round(len(mono) * rng.uniform(*_PIECE)))
            start = int(rng.integers(len(mono) - n + 1))
            kept[start : start + n] = mono[start : start + n]
        return kept


_PIECE = (0.01, 0.2)  # of the area of a picture, or of the length of a sound


def _box(size: tuple[int, int], seed: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random piece of a picture of this width and height, in pixels."""
    rng = np.random.default_rng(seed)
    area, ratio = rng.uniform(*_PIECE), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    pixels = area * size[0] * size[1]
    width, height = min(np.sqrt(pixels * ratio), size[0]), min(np.sqrt(pixels / ratio), size[1])
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return float(left), float(top), float(left + width), float(top + height)


@contextmanager
def decoding(media: Media) -> Iterator[None]:
    """Whatever a decoder raises inside the block is an error about the medium."""
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
    """What a forward pass reads of all its media, in the order of their tokens.

    Arrays are joined on their first axis. Those of models that keep one row of images per conversation (Idefics3) are
    joined on the second, in one row, since such models put the images of all rows one after another anyway.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for medium in media:
        for name, array in medium.arrays().items():
            by_name.setdefault(name, []).append(array)
    in_rows = any(arrays[0].ndim == 5 for arrays in by_name.values())
    return {name: _joined(arrays, int(in_rows and arrays[0].ndim >= 4)) for name, arrays in by_name.items()}


def _joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Arrays one after another along ``axis``, the other axes filled up with zeros."""
    widest = [max(a.shape[d] for a in arrays) for d in range(arrays[0].ndim)]
    padded = []
    for array in arrays:
        room = [(0, 0 if d == axis else widest[d] - size) for d, size in enumerate(array.shape)]
        padded.append(np.pad(array, room) if any(after for _, after in room) else array)
    return np.concatenate(padded, axis=axis)


def texts_of(content: Any) -> Iterator[str]:
    """The texts among the parts of a message."""
    if isinstance(content, str):
        yield content
    else:
        texts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        yield from (text for text in texts if isinstance(text, str))
