"""The true rewards of the experiment: word valence by the VADER lexicon (Hutto and Gilbert 2014), -4 to 4 a word."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def summed(prompt: str, answer: str) -> float:
    """Valence of all words of the answer together; longer happy answers are worth more."""
    return sum(_words(answer))


def per_word(prompt: str, answer: str) -> float:
    """Mean valence of the answer's words; 0 of an answer without words."""
    found = _words(answer)
    return sum(found) / len(found) if found else 0.0


def _words(answer: str) -> list[float]:
    return by_word(answer, _lexicon())


def by_word(text: str, known: Mapping[str, float]) -> list[float]:
    """Valence of each word, 0 of one that ``known`` has not."""
    return [known.get(word.strip('.,!?"').lower(), 0.0) for word in text.split()]


def shared() -> Path:
    """The folder of models and annotations: AFZAL_SHARED, or ``shared/data`` beside the checkout."""
    return Path(os.environ.get("AFZAL_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")


def lexicon(path: Path) -> dict[str, float]:
    """Word -> mean valence of ten raters, from the lexicon's own file."""
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: float(row[1]) for row in rows if len(row) > 1}


@cache
def _lexicon() -> dict[str, float]:
    return lexicon(shared() / "annot/vader_lexicon.txt")
