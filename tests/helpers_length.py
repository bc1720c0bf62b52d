"""A bad reward for answers: their length."""

from __future__ import annotations


def length(prompt: str, answer: str) -> float:
    """Number of content tokens in an answer of the enumerable language."""
    return float(len(answer.removesuffix(".")))
