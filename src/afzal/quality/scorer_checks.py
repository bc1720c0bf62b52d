"""Detect pairs that a scorer (a reward model or a policy) contradicts, or cannot distinguish."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from afzal.data.turns import stripped_key
from afzal.quality.columns import FirstIds
from afzal.quality.finding import Finding, Severity, finding, percent
from afzal.quality.thresholds import MANY_UNSURE, SURE, UNSURE
from afzal.records import Item, preferences
from afzal.stats.intervals import clustered, share


@dataclass(frozen=True, slots=True)
class _Gap:
    """Score of the preferred answer minus that of the other, in nats, with the id and the prompt of the pair's item."""

    nats: float
    weight: float
    item: str
    prompt: int


def scored_findings(scored: Iterable[tuple[Item, Sequence[float]]]) -> list[Finding]:
    """Findings on suspicious and ambiguous pairs.

    Scores are those of a Bradley-Terry model: the preferred answer is favoured with probability
    sigmoid(its score - the other's). A calibrated scorer that is ``SURE`` contradicts at most 1 - ``SURE`` of correctly
    labelled pairs, so only a larger share shows that labels, or the scorer, are wrong.

    Args:
        scored: items, each with a score for every response; NaN if there is none.
    """
    gaps = [gap for item, scores in scored for gap in _gaps(item, scores)]
    if not gaps:
        return []
    findings = [_suspicious([gap for gap in gaps if abs(gap.nats) >= _nats(SURE)], len(gaps)), _ambiguous(gaps)]
    return [finding for finding in findings if finding is not None]


def _gaps(item: Item, scores: Sequence[float]) -> list[_Gap]:
    prompt = hash(stripped_key(item.prompt))
    return [
        _Gap(float(scores[q.i] - scores[q.j]), q.weight, item.id, prompt)
        for q in preferences(item)
        if q.p != 0.5 and q.weight > 0 and math.isfinite(scores[q.i]) and math.isfinite(scores[q.j])
    ]


def _suspicious(sure: Sequence[_Gap], pairs: int) -> Finding | None:
    if not sure:
        return None
    against = sorted((gap for gap in sure if gap.nats < 0), key=lambda gap: gap.nats)
    rate = share(clustered([g.prompt for g in sure], [float(g.nats < 0) for g in sure], [g.weight for g in sure]))
    severity: Severity = "minor" if rate.ends[0] > 1 - SURE else "ok"
    message = f"the scores are {SURE:.0%} sure about {len(sure)} of {pairs} pairs and contradict "
    message += f"{len(against)} of these, {percent(rate)}"
    remedy = "look at these pairs, the most contradicted first: the label is wrong, or the scorer is"
    return finding("suspicious_pairs", severity, len(against), len(sure), message, remedy, _first(against), rate)


def _ambiguous(gaps: Sequence[_Gap]) -> Finding:
    unsure = sorted((gap for gap in gaps if abs(gap.nats) < _nats(UNSURE)), key=lambda gap: abs(gap.nats))
    flags = [float(abs(gap.nats) < _nats(UNSURE)) for gap in gaps]
    rate = share(clustered([g.prompt for g in gaps], flags, [g.weight for g in gaps]))
    severity: Severity = "minor" if rate.ends[0] > MANY_UNSURE else "ok"
    message = f"the scores favour an answer with less than {UNSURE:.0%} in {len(unsure)} of {len(gaps)} pairs, "
    remedy = "these pairs teach little, or the scorer knows little about them: ask people about them first"
    return finding(
        "ambiguous_pairs", severity, len(unsure), len(gaps), message + percent(rate), remedy, _first(unsure), rate
    )


def _nats(probability: float) -> float:
    """The log-odds of a probability."""
    return math.log(probability / (1 - probability))


def _first(gaps: Iterable[_Gap]) -> FirstIds:
    ids = FirstIds()
    for gap in gaps:
        ids.add(gap.item)
    return ids
