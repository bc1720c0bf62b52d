"""How much of an inferred reward the reference's samples identify.

The reward of a response that the reference never writes is not identified: its demonstrations are compared with
nothing, and its weight in the partition function is not observed. The effective number of samples measures how well the
reference's samples cover the responses that the inferred reward prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.records import Rating
from afzal.report import Section, Table
from afzal.rewards.assess import ScoredItem
from afzal.stats.intervals import Interval, clustered, mean

_FEW = 0.1  # effective share below which a handful of samples determines the partition function


@dataclass(frozen=True, slots=True)
class Identifiability:
    """Figures over the prompts with scored demonstrations and samples.

    Attributes:
        effective: effective number of samples over their number, 1 / (S sum of w^2) with w = softmax(r / beta) over
            the S samples of a prompt (Kong 1992): 1 if all rewards are equal, 1 / S if one sample has all the weight.
        unseen: share of demonstrations whose text is not among their prompt's samples.
        beyond: share of demonstrations that score above every sample of their prompt, so that how much better they are
            is not observed.
        prompts: number of prompts averaged over.
    """

    effective: Interval
    unseen: Interval
    beyond: Interval
    prompts: int

    def facts(self) -> dict[str, Any]:
        """The figures as plain values, for ``run.json``."""
        ends = lambda i: {"value": i.value, "low": i.low, "high": i.high}  # noqa: E731
        figures = {name: ends(getattr(self, name)) for name in ("effective", "unseen", "beyond")}
        return {**figures, "prompts": self.prompts}


def identifiability(scored: Sequence[ScoredItem], beta: float) -> Identifiability | None:
    """The figures of items made by :func:`afzal.prepare.demonstrations.with_samples`; None without any.

    Args:
        beta: the demonstrator's beta.
    """
    effective, unseen, beyond = [], [], []
    for s in scored:
        is_demo = np.array(
            [v.value == 1 for v in s.item.votes if isinstance(v, Rating) and v.kind == "score"], dtype=bool
        )
        finite = np.isfinite(s.scores)
        demonstrated, sampled = s.scores[is_demo & finite], s.scores[~is_demo & finite]
        if not len(demonstrated) or not len(sampled):
            continue
        w = np.exp((sampled - sampled.max()) / beta)
        effective.append(float(w.sum() ** 2 / (w**2).sum() / len(w)))
        sample_texts = {s.item.responses[k].turns for k in np.flatnonzero(~is_demo).tolist()}
        texts = [s.item.responses[k].turns for k in np.flatnonzero(is_demo & finite).tolist()]
        unseen.append(float(np.mean([text not in sample_texts for text in texts])))
        beyond.append(float((demonstrated > sampled.max()).mean()))
    if not effective:
        return None
    return Identifiability(_mean_interval(effective), _mean_interval(unseen), _mean_interval(beyond), len(effective))


def _mean_interval(values: Sequence[float]) -> Interval:
    estimate = mean(clustered(range(len(values)), values))
    low, high = estimate.ends
    return Interval(estimate.mean, max(0.0, low), min(1.0, high), len(values))


def line(figures: Identifiability) -> str:
    """The figures in a sentence."""
    sentence = (
        f"the samples' effective share is {figures.effective.value:.2f}; {figures.unseen.value:.0%} of the "
        f"demonstrations are not among their prompt's samples, and {figures.beyond.value:.0%} score above every sample"
    )
    note = " (low: draw more samples, or from a policy closer to the demonstrations)"
    return sentence + (note if figures.effective.value < _FEW else "")


def section(figures: Identifiability) -> Section:
    """The figures as a section of the report."""
    text = (
        "A reward is inferred from the differences between demonstrations and samples of the reference. It is known up "
        "to a constant per prompt, and only for responses that the reference can write: others are not identified, and "
        "the reward model extrapolates to them. Intervals are over prompts."
    )
    names = {
        "effective": "effective share of the samples",
        "unseen": "demonstrations not among their prompt's samples",
        "beyond": "demonstrations that score above every sample",
    }
    cells = [(title, getattr(figures, name)) for name, title in names.items()]
    rows = tuple((title, i.value, i.low, i.high) for title, i in cells)
    return Section("What is identified", text, table=Table(("", "share", "low", "high"), rows))
