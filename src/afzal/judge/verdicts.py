"""Verdicts of judges, people included, on pairs of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from afzal.records import SWAPPED, Comparison

Outcome = Literal["first", "second", "tie", "both_bad", "none"]
MIRRORED: dict[Outcome, Outcome] = {**SWAPPED, "none": "none"}
POINTS: dict[Outcome, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
"""What the first answer gets of a point; no verdict gives none to anybody."""
CODES: dict[Outcome, int] = {"first": 1, "second": 2, "tie": 0, "both_bad": 0, "none": -1}
"""Outcomes as :mod:`afzal.stats.judging` numbers them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement of two answers to one prompt.

    Attributes:
        prompt: what the two answers answer; verdicts on one prompt are not independent.
        item: the pair of answers; the same for all judgements of it, in either order.
        first, second: the models that wrote them, by name.
        outcome: in this numbering, however they were shown. ``none`` is not a verdict: a refusal, an unreadable reply.
        judge: who judged.
        shown_first: which of the two was shown first, 0 or 1, where it is known.
        probability: a stated probability that the first is better; it leads to the outcome and is kept beside it.
        lengths: of the two answers in characters, where the file holds them.
        category: what kind of prompt it is, where the file says so.
    """

    prompt: str
    item: str
    first: str
    second: str
    outcome: Outcome
    judge: str = ""
    shown_first: int | None = None
    probability: float | None = None
    lengths: tuple[int, int] | None = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a file of verdicts holds.

    Attributes:
        verdicts: all of them, also those that name no winner.
        gold: the true outcome by item, where it is known.
        format: how the file was read.
        rows: rows read.
        notes: what was understood, in words.
    """

    verdicts: Sequence[Verdict]
    gold: Mapping[str, Outcome] = field(default_factory=dict)
    format: str = ""
    rows: int = 0
    notes: Sequence[str] = ()

    @property
    def outcomes(self) -> dict[str, int]:
        """Verdicts by outcome."""
        return dict(Counter(v.outcome for v in self.verdicts))


def outcome_of(vote: Comparison) -> Outcome:
    """What a comparison says of its first response; a stated probability decides."""
    return vote.outcome if vote.probability is None else from_probability(vote.probability)


def from_probability(p: float) -> Outcome:
    """The outcome that a probability of the first leads to."""
    return "first" if p > 0.5 else "second" if p < 0.5 else "tie"
