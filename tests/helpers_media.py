"""Tiny images and sounds for tests, determined by their arguments."""

import io
import math
import struct


def png(red: int = 200, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", size, (red % 256, red // 256 % 256, 7)).save(stream, format)
    return stream.getvalue()


def wav(hertz: float = 440.0, seconds: float = 0.1, rate: int = 8000) -> bytes:
    frames = [round(20000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(int(seconds * rate))]
    content = struct.pack(f"<{len(frames)}h", *frames)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sound(format: str, seconds: float = 0.5, rate: int = 8000) -> bytes:
    import numpy as np
    import soundfile

    stream = io.BytesIO()
    tone = np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate) * 0.5
    tone += np.random.default_rng(0).normal(0, 0.05, len(tone))
    soundfile.write(stream, tone, rate, format=format)
    return stream.getvalue()
