"""True rewards of the experiment: word valence from the VADER lexicon (Hutto and Gilbert 2014), -4 to 4 per word."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def summed(prompt: str, answer: str) -> float:
    """Summed valence of the answer's words; longer happy answers are worth more."""
    return sum(_words(answer))


def per_word(prompt: str, answer: str) -> float:
    """Mean valence of the answer's words; 0 for an answer without words."""
    values = _words(answer)
    return sum(values) / len(values) if values else 0.0


def _words(answer: str) -> list[float]:
    return by_word(answer, _lexicon())


def by_word(text: str, known: Mapping[str, float]) -> list[float]:
    """Valence of each word, 0 for words that are not in ``known``."""
    return [known.get(word.strip('.,!?"').lower(), 0.0) for word in text.split()]


def shared() -> Path:
    """The folder of models and annotations: AFZAL_SHARED, or ``shared/data`` next to the checkout."""
    return Path(os.environ.get("AFZAL_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")


def lexicon(path: Path) -> dict[str, float]:
    """Map each word to the mean valence of ten raters, from the lexicon's file."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: float(row[1]) for row in rows if len(row) > 1}


@cache
def _lexicon() -> dict[str, float]:
    return lexicon(shared() / "annot/vader_lexicon.txt")
