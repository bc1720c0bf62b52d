"""A score that revisions must preserve, so that a pair differs in the principle and not in the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afzal.config.revise import ReviseConfig
from afzal.judging.rewards import named_in, reward_or_judge
from afzal.model.load import pick_device
from afzal.records import Turns
from afzal.servers.cache import REPLIES


def sources_of(match: str | None) -> list[str]:
    """The sources of the score: the named function, folder or judge, and those named in the judge's file."""
    return [] if match is None else [match, *named_in(match)]


def score_gaps(config: ReviseConfig, tasks: Sequence[tuple[Turns, str, Sequence[str]]]) -> list[list[float | None]]:
    """Each candidate's score less the first answer's, in units of the score.

    Args:
        tasks: (prompt, first answer, candidates).

    Returns:
        One list per task; None for an empty candidate, and everywhere without ``config.match``.

    Raises:
        AfzalError: the score cannot be read, or is not finite.
    """
    if config.match is None or not tasks:
        return [[None] * len(texts) for _, _, texts in tasks]
    score = reward_or_judge(config.match, device=pick_device("auto"), replies=Path(config.out) / REPLIES)
    texts_to_score = [(prompt, text) for prompt, first, texts in tasks for text in (first, *texts) if text.strip()]
    values = iter(score([prompt for prompt, _ in texts_to_score], [text for _, text in texts_to_score]))
    gaps = []
    for _, first, texts in tasks:
        origin = next(values) if first.strip() else None
        scores = [next(values) if text.strip() else None for text in texts]
        gaps.append([None if value is None or origin is None else value - origin for value in scores])
    return gaps
