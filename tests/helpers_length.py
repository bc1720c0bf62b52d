"""A reward of answers that is no good one: their length."""

from __future__ import annotations


def length(prompt: str, answer: str) -> float:
    """Content tokens of an answer of the enumerable language."""
    return float(len(answer.removesuffix(".")))
