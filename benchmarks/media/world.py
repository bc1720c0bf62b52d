"""Random pictures and tones with one true caption each, and rows for training and measuring."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

World = Literal["shapes", "tones"]
WORLDS: tuple[World, ...] = ("shapes", "tones")
KIND: dict[World, str] = {"shapes": "image", "tones": "audio"}
QUESTION: dict[World, str] = {"shapes": "What is drawn?", "tones": "What is heard?"}

SIDE = 32
"""Pixels along a picture."""
RATE = 16000
"""Samples per second; every sound lasts one second."""
SLOPPY = 0.6
"""Share of demonstrations whose caption counts one too many (and says one if the number is the largest)."""

FLIPPED = 0.2
"""Share of preferences for the false caption."""
_NUMBERS = ("one", "two", "three", "four")
_COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 210), "yellow": (225, 200, 30)}
_SHAPES = ("circle", "square", "triangle")
_PITCHES = {"low": 300.0, "middle": 800.0, "high": 2000.0}
_LENGTHS = {"short": 0.07, "long": 0.2}
_LONGEST_SPAN = 0.9  # seconds from the first tone to the end of the last


@dataclass(frozen=True, slots=True)
class Size:
    """Number of rows of each kind, updates of SFT and of each preference objective, and the seed of everything."""

    demonstrations: int = 4096
    preferences: int = 4096
    held_out: int = 300
    sft_updates: int = 400
    preference_updates: int = 100
    shown: int = 6
    seed: int = 0


PROPER = Size()
QUICK = Size(demonstrations=16, preferences=16, held_out=6, sft_updates=2, preference_updates=2, shown=2)


def captions(world: World) -> list[str]:
    """Every possible true caption: 48 for pictures, 18 for sounds."""
    if world == "shapes":
        return [_plural(n, f"{c} {s}") for n, c, s in product(_NUMBERS, _COLOURS, _SHAPES)]
    return [_plural(n, f"{length} {p} tone") for n, length, p in product(_NUMBERS[:3], _LENGTHS, _PITCHES)]


def medium(world: World, caption: str, rng: np.random.Generator) -> bytes:
    """A PNG or WAV for which the caption is true; place, size, shade, loudness and noise are random."""
    words = caption.split()
    number, kind = _NUMBERS.index(words[0]) + 1, words[-1].removesuffix("s")
    if world == "shapes":
        return _picture(number, words[1], kind, rng)
    return _sound(number, _LENGTHS[words[1]], _PITCHES[words[2]], rng)


def write(folder: Path, world: World, size: Size) -> None:
    """Write the rows of a world, with their media in the same folder.

    ``sft.jsonl`` has captions of a sloppy writer. ``prefer.jsonl`` has the true caption and one with a false word, half
    of them as that writer errs; a share of the pairs is flipped. ``held-out.jsonl`` has all captions, the true one
    first."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([WORLDS.index(world), size.seed])
    known = captions(world)
    for part, n in (("sft", size.demonstrations), ("prefer", size.preferences), ("held-out", size.held_out)):
        rows = []
        for k in range(n):
            true, *others = (known[i] for i in rng.permutation(len(known)))
            name = f"{part}-{k}.{'png' if world == 'shapes' else 'wav'}"
            (folder / name).write_bytes(medium(world, true, rng))
            rows.append(_row(part, _prompt(world, name), true, others, float(rng.random())))
        _write_rows(folder / f"{part}.jsonl", rows)


def _row(part: str, prompt: list[Any], true: str, others: list[str], draw: float) -> dict[str, Any]:
    if part == "sft":
        return {"messages": [*prompt, _assistant_turn(one_more(true, others) if draw < SLOPPY else true)]}
    if part == "held-out":
        return {"prompt": prompt, "responses": [[_assistant_turn(text)] for text in (true, *others)], "i": 0, "j": 1}
    near = next(text for text in others if words_apart(text, true) == 1)
    false = one_more(true, others) if others[0] < others[1] else near
    chosen, rejected = (false, true) if draw < FLIPPED else (true, false)
    return {"prompt": prompt, "chosen": [_assistant_turn(chosen)], "rejected": [_assistant_turn(rejected)]}


def one_more(caption: str, others: list[str]) -> str:
    """The caption with the next number; the largest becomes one."""
    number, *rest = caption.removesuffix("s").split()
    known = [text.split()[0] for text in (caption, *others)]
    order = [word for word in _NUMBERS if word in known]
    return _plural(order[(order.index(number) + 1) % len(order)], " ".join(rest))


def words_apart(one: str, other: str) -> int:
    """Number of words (number; length or colour; pitch or shape) in which two captions differ."""
    both = zip(one.removesuffix("s").split(), other.removesuffix("s").split(), strict=True)
    return sum(a != b for a, b in both)


def _prompt(world: World, name: str) -> list[Any]:
    parts = [{"type": KIND[world], "path": name}, {"type": "text", "text": QUESTION[world]}]
    return [{"role": "user", "content": parts}]


def _assistant_turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _plural(number: str, what: str) -> str:
    return f"{number} {what}{'' if number == 'one' else 's'}"


def _picture(number: int, colour: str, shape: str, rng: np.random.Generator) -> bytes:
    from PIL import Image, ImageDraw

    paper = tuple(int(x) for x in rng.integers(225, 256, 3))
    image = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    ink = tuple(int(np.clip(x + rng.integers(-25, 26), 0, 255)) for x in _COLOURS[colour])
    cell = SIDE // 2
    for place in rng.permutation(4)[:number]:
        r = float(rng.uniform(4.5, 6.5))
        x, y = (cell * at + float(rng.uniform(r + 0.5, cell - r - 0.5)) for at in divmod(int(place), 2))
        box = (x - r, y - r, x + r, y + r)
        if shape == "circle":
            draw.ellipse(box, fill=ink)
        elif shape == "square":
            draw.rectangle(box, fill=ink)
        else:
            draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=ink)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _sound(number: int, seconds: float, hertz: float, rng: np.random.Generator) -> bytes:
    import soundfile

    samples = rng.normal(0, 0.01, RATE)
    gap = _LONGEST_SPAN / number - seconds
    at = float(rng.uniform(0, 1 - _LONGEST_SPAN))
    pitch, loudness = hertz * float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.2, 0.6))
    for _ in range(number):
        n = int(seconds * RATE * float(rng.uniform(0.9, 1.1)))
        first = int(at * RATE)
        samples[first : first + n] += loudness * np.sin(2 * np.pi * pitch * np.arange(n) / RATE) * np.hanning(n) ** 0.25
        at += seconds + min(gap, 0.12)
    out = io.BytesIO()
    soundfile.write(out, samples.clip(-1, 1), RATE, format="WAV", subtype="PCM_16")
    return out.getvalue()
