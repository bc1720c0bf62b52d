"""Which part of an inferred reward the samples of the reference say anything about.

The reward of a response that the reference never writes is not identified: no demonstration of it is compared with
anything, and its weight in the partition is not seen. The effective number of samples says how far the reference's
samples cover what the inferred reward prefers.
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

_FEW = 0.1  # of the samples: below it the partition is an estimate by a handful of them


@dataclass(frozen=True, slots=True)
class Identified:
    """Over the prompts of demonstrations and samples that were scored.

    Attributes:
        effective: effective number of samples over their number, 1 / (S sum of w^2) with w = softmax(r / beta) over
            the S samples of a prompt (Kong 1992): 1 where the reward prefers none of them, 1 / S where one has all.
        unseen: of the demonstrations, the share whose text is none of their prompt's samples.
        beyond: of the demonstrations, the share that scores above every sample of its prompt: how much better they are
            than the best sample is not seen.
        prompts: how many are averaged over.
    """

    effective: Interval
    unseen: Interval
    beyond: Interval
    prompts: int

    def facts(self) -> dict[str, Any]:
        """The figures as plain values, for ``run.json``."""
        ends = lambda i: {"value": i.value, "low": i.low, "high": i.high}  # noqa: E731
        parts = {name: ends(getattr(self, name)) for name in ("effective", "unseen", "beyond")}
        return {**parts, "prompts": self.prompts}


def identified(scored: Sequence[ScoredItem], beta: float) -> Identified | None:
    """The figures of items as :func:`afzal.prepare.demonstrations.beside` makes them; None without any.

    Args:
        beta: that of the demonstrator's objective.
    """
    effective, unseen, beyond = [], [], []
    for s in scored:
        shown = np.array(
            [v.value == 1 for v in s.item.votes if isinstance(v, Rating) and v.kind == "score"], dtype=bool
        )
        known = np.isfinite(s.scores)
        ours, theirs = s.scores[shown & known], s.scores[~shown & known]
        if not len(ours) or not len(theirs):
            continue
        w = np.exp((theirs - theirs.max()) / beta)
        effective.append(float(w.sum() ** 2 / (w**2).sum() / len(w)))
        drawn = {s.item.responses[k].turns for k in np.flatnonzero(~shown).tolist()}
        texts = [s.item.responses[k].turns for k in np.flatnonzero(shown & known).tolist()]
        unseen.append(float(np.mean([text not in drawn for text in texts])))
        beyond.append(float((ours > theirs.max()).mean()))
    if not effective:
        return None
    return Identified(_over(effective), _over(unseen), _over(beyond), len(effective))


def _over(values: Sequence[float]) -> Interval:
    known = mean(clustered(range(len(values)), values))
    low, high = known.ends
    return Interval(known.mean, max(0.0, low), min(1.0, high), len(values))


def line(found: Identified) -> str:
    """The figures in a sentence."""
    said = (
        f"the samples' effective share is {found.effective.value:.2f}; {found.unseen.value:.0%} of the demonstrations "
        f"are no sample of their prompt, and {found.beyond.value:.0%} score above every sample"
    )
    few = " (few: draw more samples, or from a policy nearer to the demonstrations)"
    return said + (few if found.effective.value < _FEW else "")


def section(found: Identified) -> Section:
    """The same for the report."""
    text = (
        "A reward is inferred from what demonstrations have that samples of the reference lack. It is known up to a "
        "constant per prompt, and only for responses that the reference writes at all: what it never writes is not "
        "identified, and the reward model extrapolates there. Intervals are over prompts."
    )
    names = {
        "effective": "effective share of the samples",
        "unseen": "demonstrations that are no sample of their prompt",
        "beyond": "demonstrations that score above every sample",
    }
    cells = [(words, getattr(found, name)) for name, words in names.items()]
    rows = tuple((words, i.value, i.low, i.high) for words, i in cells)
    return Section("What is identified", text, table=Table(("", "share", "low", "high"), rows))
