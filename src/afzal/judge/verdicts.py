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
"""Points for the first answer; ``none`` scores for neither side."""
CODES: dict[Outcome, int] = {"first": 1, "second": 2, "tie": 0, "both_bad": 0, "none": -1}
"""Outcomes as coded in :mod:`afzal.stats.judging`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement of two answers to one prompt.

    Attributes:
        prompt: the prompt of both answers; verdicts on one prompt are not independent.
        item: key of the pair of answers; the same for all its judgements, in either order.
        first, second: names of the models that wrote them.
        outcome: in this numbering, whatever the order shown. ``none`` is not a verdict: a refusal, an unreadable reply.
        judge: name of the judge.
        shown_first: which of the two was shown first, 0 or 1; None if unknown.
        probability: a stated probability that the first is better, from which the outcome follows.
        lengths: of the two answers in characters; None if the file does not hold them.
        category: the kind of prompt; empty if the file does not say.
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
    """The contents of a file of verdicts.

    Attributes:
        verdicts: all of them, including those that name no winner.
        gold: true outcomes by item, as far as known.
        format: the format in which the file was read.
        rows: number of rows read.
        notes: remarks on how the file was understood.
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
    """The outcome of a comparison; a stated probability takes precedence."""
    return vote.outcome if vote.probability is None else from_probability(vote.probability)


def from_probability(p: float) -> Outcome:
    """The outcome that follows from the probability that the first is better."""
    return "first" if p > 0.5 else "second" if p < 0.5 else "tie"
