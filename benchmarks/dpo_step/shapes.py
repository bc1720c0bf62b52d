"""Lengths of prompts and responses, and random token ids of these lengths: the same for every side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SIGMA = 0.6  # of the logarithm, if there is no real distribution
_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean tokens of prompt and response (EOS included), and pairs per update."""

    prompt: int
    response: int
    pairs: int = 8
    max_tokens: int = _MAX_TOKENS


SHAPES = {
    "hh": Shape(127, 59),
    "tldr": Shape(382, 34),
    "uf": Shape(121, 288),
    "long": Shape(4000, 300, pairs=2, max_tokens=8192),
}
"""Median prompts and responses of HH-RLHF, TL;DR, UltraFeedback (arXiv 2410.20305, table 1) and a long context."""


def lengths(name: str, n: int, seed: int, shared: Path | None) -> tuple[np.ndarray, str]:
    """``[n, 3]`` tokens of prompt, chosen, rejected, and the source of their distribution.

    HH-RLHF uses its real rows if the data folder exists, scaled to the shape's means. Every other shape, and HH-RLHF
    without the folder, is log-normal.
    """
    shape = SHAPES[name]
    real = shared / "pref/hh_rlhf_harmless_a.jsonl.gz" if shared else None
    if name == "hh" and real is not None and real.exists():
        drawn, source = _real(real, shared / "tokenizers/gpt-neox-20b", n, seed), "real rows, scaled"
    else:
        rng = np.random.default_rng(seed)
        drawn, source = np.exp(rng.normal(0.0, _SIGMA, (n, 3))), f"log-normal, sigma {_SIGMA}"
    means = np.array([shape.prompt, shape.response, shape.response])
    scaled = np.maximum(2, np.rint(drawn / drawn.mean(0) * means)).astype(int)
    room = shape.max_tokens - np.minimum(scaled[:, 0], shape.max_tokens - 16)
    scaled[:, 0] = np.minimum(scaled[:, 0], shape.max_tokens - 16)
    scaled[:, 1:] = np.minimum(scaled[:, 1:], room[:, None])
    return scaled, source


def _real(file: Path, tokenizer: Path, n: int, seed: int) -> np.ndarray:
    from afzal import data
    from afzal.model.load import load_tokenizer
    from afzal.tokens import encode

    trees = encode(data.read(file).items[:600], load_tokenizer(str(tokenizer)), max_tokens=4096).trees
    counts = np.array([[len(t.prompt), *(len(b.ids) for b in t.branches)] for t in trees if len(t.branches) == 2])
    return counts[np.random.default_rng(seed).permutation(len(counts))[:n]].astype(float)


def rows(counts: np.ndarray, vocabulary: int, seed: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Random ids (0 is padding, 1 is EOS and ends every response) of prompt, chosen and rejected."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(2, vocabulary, n).tolist()  # noqa: E731
    return [(draw(p), [*draw(c - 1), 1], [*draw(r - 1), 1]) for p, c, r in counts.tolist()]
