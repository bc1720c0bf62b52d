"""Principles without a model: their order, violations of word lists, and refusals."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from afzal.config.revise import PrincipleConfig

_HEAD = 80
"""Characters at the start of an answer within which a refusal begins."""


def principle_at_step(principles: Sequence[PrincipleConfig], seed: int, prompt_id: str, step: int) -> PrincipleConfig:
    """The principle of a step (from 0) for one prompt: a random order without repeats, from the seed and the prompt.

    Args:
        prompt_id: identifies the prompt. The order depends only on it, the seed and the principles' ids.
    """
    ordered = sorted(principles, key=lambda p: hashlib.sha256(f"{seed} {prompt_id} {p.id}".encode()).digest())
    return ordered[step % len(ordered)]


def find_violations(principle: PrincipleConfig, answer: str) -> list[str]:
    """Violations of the word lists: each word of ``avoid`` that occurs, and one for ``need`` if none of its words
    occurs.

    Whole words count, ignoring case; a star at the start or end of a word matches any letters.
    """
    violations = [word for word in principle.avoid if _pattern(word).search(answer)]
    if principle.need and not any(_pattern(word).search(answer) for word in principle.need):
        violations.append("none of " + ", ".join(principle.need))
    return violations


def count_violations(principles: Sequence[PrincipleConfig], answer: str) -> int:
    """The number of violations of all principles' word lists; 0 is best."""
    return sum(len(find_violations(principle, answer)) for principle in principles)


def critique_by_words(principle: PrincipleConfig, answer: str) -> str:
    """A critique that lists the violations of the word lists; empty if there are none."""
    avoided = [word for word in principle.avoid if _pattern(word).search(answer)]
    parts = [f"It has the words: {', '.join(avoided)}."] if avoided else []
    if len(find_violations(principle, answer)) > len(avoided):
        parts.append(f"It has none of the words: {', '.join(principle.need)}.")
    return " ".join(parts)


def is_refusal(answer: str, phrases: Sequence[str]) -> bool:
    """Whether one of the phrases begins within the first 80 characters; typographic apostrophes match plain ones."""
    head = " ".join(answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    return any(0 <= head.find(phrase.lower()) < _HEAD for phrase in phrases)


def rejection_reason(
    current: str, candidate: str, principle: PrincipleConfig, principles: Sequence[PrincipleConfig]
) -> str:
    """Why a candidate is not accepted as the revision of the current answer under a principle; empty if it is accepted.

    If the answer violates the principle's word lists, its revision must have fewer violations; and the violations of
    all principles together must never increase.
    """
    if not candidate.strip():
        return "empty"
    if candidate.strip() == current.strip():
        return "unchanged"
    before = len(find_violations(principle, current))
    if before and len(find_violations(principle, candidate)) >= before:
        return "no better by the word lists"
    if count_violations(principles, candidate) > count_violations(principles, current):
        return "worse by the word lists"
    return ""


def choose_candidate(
    current: str,
    candidates: Sequence[str],
    principle: PrincipleConfig,
    principles: Sequence[PrincipleConfig],
    gaps: Sequence[float | None],
    largest_gap: float | None,
) -> tuple[str, str, float | None]:
    """The candidate with the fewest violations, why it is rejected (empty if it is not), and its score gap.

    Args:
        gaps: each candidate's score less the first answer's; None if unknown.
        largest_gap: the largest accepted gap in either direction. Among candidates with equally few violations the
            closest score wins. None ignores scores.
    """
    is_near = [largest_gap is None or (gap is not None and abs(gap) <= largest_gap) for gap in gaps]

    def rank(k: int) -> tuple[bool, bool, int, float]:
        distance = 0.0 if largest_gap is None else abs(gaps[k] or 0.0)
        return not candidates[k].strip(), not is_near[k], count_violations(principles, candidates[k]), distance

    best = min(range(len(candidates)), key=rank)
    why = rejection_reason(current, candidates[best], principle, principles)
    return candidates[best], why or ("" if is_near[best] else "another score"), gaps[best]


@lru_cache(4096)
def _pattern(word: str) -> re.Pattern[str]:
    before, after = (
        "" if star else edge for star, edge in ((word[:1] == "*", r"(?<!\w)"), (word[-1:] == "*", r"(?!\w)"))
    )
    return re.compile(before + re.escape(word.removeprefix("*").removesuffix("*")) + after, re.IGNORECASE)
