"""Principles without a model: which comes when, what word lists find, and what is a refusal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from afzal.config.revise import PrincipleConfig

_HEAD = 80
"""Characters at the start of an answer among which a refusal begins."""


def in_turn(principles: Sequence[PrincipleConfig], seed: int, about: str, step: int) -> PrincipleConfig:
    """The principle of a step (from 0) for one prompt: a random order without repeats, from the seed and the prompt.

    Args:
        about: names the prompt. The order depends on it and on the ids alone, whatever other prompts there are.
    """
    ordered = sorted(principles, key=lambda p: hashlib.sha256(f"{seed} {about} {p.id}".encode()).digest())
    return ordered[step % len(ordered)]


def broken(principle: PrincipleConfig, answer: str) -> list[str]:
    """What the word lists find: each word of ``avoid`` that occurs, and ``need`` as a whole where none of it occurs.

    Whole words count, in either case; a star at the start or the end of a word stands for any letters.
    """
    said = [word for word in principle.avoid if _pattern(word).search(answer)]
    if principle.need and not any(_pattern(word).search(answer) for word in principle.need):
        said.append("none of " + ", ".join(principle.need))
    return said


def breaches(principles: Sequence[PrincipleConfig], answer: str) -> int:
    """How many findings the word lists of all principles have; 0 is best."""
    return sum(len(broken(principle, answer)) for principle in principles)


def by_words(principle: PrincipleConfig, answer: str) -> str:
    """A critique of what the word lists find; empty where they find nothing."""
    avoided = [word for word in principle.avoid if _pattern(word).search(answer)]
    parts = [f"It has the words: {', '.join(avoided)}."] if avoided else []
    if len(broken(principle, answer)) > len(avoided):
        parts.append(f"It has none of the words: {', '.join(principle.need)}.")
    return " ".join(parts)


def refuses(answer: str, phrases: Sequence[str]) -> bool:
    """Whether one of the phrases begins within the first 80 characters; typographic apostrophes count as plain ones."""
    head = " ".join(answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    return any(0 <= head.find(phrase.lower()) < _HEAD for phrase in phrases)


def better(current: str, candidate: str, principle: PrincipleConfig, principles: Sequence[PrincipleConfig]) -> str:
    """Why a candidate is not taken as the revision of the current answer under a principle; empty where it is taken.

    Word lists decide only what they know of: where the answer breaks those of the principle, its revision must break
    fewer, and in no case may the findings of all principles together become more.
    """
    if not candidate.strip():
        return "empty"
    if candidate.strip() == current.strip():
        return "unchanged"
    before = len(broken(principle, current))
    if before and len(broken(principle, candidate)) >= before:
        return "no better by the word lists"
    if breaches(principles, candidate) > breaches(principles, current):
        return "worse by the word lists"
    return ""


def chosen(
    current: str,
    candidates: Sequence[str],
    principle: PrincipleConfig,
    principles: Sequence[PrincipleConfig],
    gaps: Sequence[float | None],
    within: float | None,
) -> tuple[str, str, float | None]:
    """The candidate that breaks the fewest word lists, why it is not taken (empty where it is), and its score gap.

    Args:
        gaps: how much more each candidate scores than the first answer; None where that is not known.
        within: the largest gap that is taken, either way. Among candidates with equally few findings the nearest score
            wins. None leaves scores aside.
    """
    near = [within is None or (gap is not None and abs(gap) <= within) for gap in gaps]

    def rank(k: int) -> tuple[bool, bool, int, float]:
        far = 0.0 if within is None else abs(gaps[k] or 0.0)
        return not candidates[k].strip(), not near[k], breaches(principles, candidates[k]), far

    best = min(range(len(candidates)), key=rank)
    why = better(current, candidates[best], principle, principles)
    return candidates[best], why or ("" if near[best] else "another score"), gaps[best]


@lru_cache(4096)
def _pattern(word: str) -> re.Pattern[str]:
    before, after = (
        "" if star else edge for star, edge in ((word[:1] == "*", r"(?<!\w)"), (word[-1:] == "*", r"(?!\w)"))
    )
    return re.compile(before + re.escape(word.removeprefix("*").removesuffix("*")) + after, re.IGNORECASE)
