"""Scores of every response of a data set, and an assessment of the model that gave them.

Shapes: B responses, N heads, K responses of an item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.drops import Drop
from afzal.records import Item, comparisons, preferences, prompt_key
from afzal.report import LineChart, Section, Series, Table
from afzal.report.svg import HELD_OUT, OPTIMUM
from afzal.stats.calibration import Calibration, Trend, calibration, trend
from afzal.stats.intervals import Interval, clustered, share
from afzal.text import plural
from afzal.tokens import Branch, Speaker, Tree
from afzal.tokens.batch import Batch
from afzal.train.feed import Layout

ScoreBatch = Callable[[Batch], Tensor]
"""Scores ``[B, N]`` of a batch's responses."""

_FEW = 10  # votes needed for an annotator's accuracy to mean anything


@dataclass(frozen=True, slots=True, eq=False)
class ScoredItem:
    """An item with its responses' scores ``[K]`` (mean over heads), their spread over heads ``[K]`` (0 with one head)
    and lengths ``[K]`` in tokens. An unreadable response has NaN, NaN and 0."""

    item: Item
    scores: np.ndarray
    spread: np.ndarray
    lengths: np.ndarray


def score_items(
    score: ScoreBatch,
    items: Sequence[Item],
    speaker: Speaker,
    layout: Layout,
    *,
    max_tokens: int,
    cut: Collection[tuple[int, int]] = (),
) -> tuple[list[ScoredItem], list[Drop]]:
    """The scores of every response of ``items``, in order, and the unreadable or truncated ones with the reason.

    Args:
        max_tokens: longest prompt + response; longer ones are truncated.
        cut: (item, response) of responses that were cut at a length limit when generated: they are read without the end
            mark that other responses get.
    """
    places, losses = _read(items, speaker, max_tokens, cut)
    return _filled(items, places, _by_tree(score, [t for t, _, _ in places], layout)), losses


def score_heads(
    score: ScoreBatch, items: Sequence[Item], speaker: Speaker, layout: Layout, *, max_tokens: int
) -> list[np.ndarray]:
    """Per item ``[K, N]`` the scores of its responses by every head; NaN for an unreadable response.
    :func:`score_items` gives their means."""
    places, _ = _read(items, speaker, max_tokens, ())
    rows_of = _by_tree(score, [t for t, _, _ in places], layout)
    width = max((len(row) for rows in rows_of.values() for row in rows), default=1)
    scores = [np.full((len(item.responses), width), math.nan) for item in items]
    for t, k, responses in places:
        for branch, response in enumerate(responses):
            scores[k][response] = rows_of[id(t)][branch]
    return scores


def _read(
    items: Sequence[Item], speaker: Speaker, max_tokens: int, cut: Collection[tuple[int, int]]
) -> tuple[list[tuple[Tree, int, list[int]]], list[Drop]]:
    """Trees, each with its item and the response of each branch; and the unreadable or truncated responses."""
    encoded = speaker.encode(items, max_tokens=max_tokens)
    places: list[tuple[Tree, int, list[int]]] = []  # a tree, its item, and the response of each branch
    incomplete = []
    for t, k in zip(encoded.trees, encoded.indices, strict=True):
        if len(t.branches) == len(items[k].responses):
            places.append((t, k, list(range(len(t.branches)))))
        else:
            incomplete += [(k, r) for r in range(len(items[k].responses))]
    # an item that lost a response is read again one response at a time, to know which response each branch is
    singles = [replace(items[k], responses=(items[k].responses[r],), votes=()) for k, r in incomplete]
    reread = speaker.encode(singles, max_tokens=max_tokens) if singles else None
    for t, n in zip(reread.trees, reread.indices, strict=True) if reread else ():
        places.append((t, incomplete[n][0], [incomplete[n][1]]))
    if cut:
        places = [(_as_cut(t, items[k], [(k, r) in cut for r in rs], speaker), k, rs) for t, k, rs in places]
    return places, [*encoded.drops, *encoded.cuts]


def _as_cut(t: Tree, item: Item, cut: Sequence[bool], speaker: Speaker) -> Tree:
    """The tree without the end marks of the branches in ``cut``; a branch that is only an end mark keeps it."""
    end = speaker.response_end(chat=item.is_chat)
    branches = []
    for b, is_cut in zip(t.branches, cut, strict=True):
        last = int(np.flatnonzero(b.scored)[-1])
        shorten = is_cut and b.ids[last] == end and b.scored[:last].any()
        branches.append(Branch(b.ids[:last], b.scored[:last]) if shorten else b)
    return replace(t, branches=tuple(branches))


def _by_tree(score: ScoreBatch, trees: Sequence[Tree], layout: Layout) -> dict[int, list[np.ndarray]]:
    rows: dict[int, list[np.ndarray]] = {id(t): [] for t in trees}
    with torch.no_grad():
        for batch in layout.batches(trees):
            for (t, _), row in zip(batch.sources, score(batch).float().cpu().numpy(), strict=True):
                rows[id(t)].append(row)
    return rows


def _filled(
    items: Sequence[Item], places: Sequence[tuple[Tree, int, list[int]]], rows_of: dict[int, list[np.ndarray]]
) -> list[ScoredItem]:
    blank = lambda item, value: np.full(len(item.responses), value)  # noqa: E731
    scored = [ScoredItem(item, blank(item, math.nan), blank(item, math.nan), blank(item, 0)) for item in items]
    for t, k, responses in places:
        for branch, response in enumerate(responses):
            row = rows_of[id(t)][branch].astype(np.float64)
            scored[k].scores[response] = row.mean()
            scored[k].spread[response] = row.std(ddof=1) if len(row) > 1 else 0.0
            scored[k].lengths[response] = int(t.branches[branch].scored.sum())
    return scored


@dataclass(frozen=True, slots=True)
class Share:
    """The weighted share of ``n`` pairs or votes that is right (ties in score count half), with its 95% interval over
    prompts."""

    estimate: Interval
    n: int

    @property
    def value(self) -> float:
        """The share, from 0 to 1."""
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95% interval."""
        return self.estimate.ends

    @property
    def prompts(self) -> int:
        """The number of the pairs' prompts."""
        return self.estimate.n


@dataclass(frozen=True, slots=True)
class Assessment:
    """The quality of scores, measured by the preferences of the same items; None without anything to compare with.

    ``length`` is the trend of the score on a response's tokens, ``length_within`` that of a pair's score difference on
    its difference in tokens, and ``strength`` that of the score difference on the stated strength of a preference.
    ``annotators`` holds those with enough votes.
    """

    accuracy: Share | None
    calibration: Calibration | None
    length: Trend | None
    length_within: Trend | None
    strength: Trend | None
    annotators: dict[str, Share]
    spread: float
    n_responses: int

    def facts(self) -> dict[str, Any]:
        """The figures as plain values, for ``run.json``."""
        figures: dict[str, Any] = {"responses": self.n_responses}
        if self.accuracy:
            figures["accuracy"] = _share(self.accuracy)
        for name in ("calibration", "length", "length_within", "strength"):
            if (value := getattr(self, name)) is not None:
                figures[name] = asdict(value)
        if self.annotators:
            figures["annotators"] = {name: _share(share) for name, share in self.annotators.items()}
        return figures | ({"spread_over_heads": self.spread} if self.spread else {})


def _share(share: Share) -> dict[str, float]:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high, "n": share.n, "prompts": share.prompts}


def assess(scored: Sequence[ScoredItem]) -> Assessment:
    """All figures of scores, compared with the preferences, votes and lengths of their items.

    Pairs count by weight, as in the loss. Pairs that share a prompt are not independent, so intervals are over prompts.
    """
    keys = [prompt_key(s.item) for s in scored]
    keyed_pairs = [
        (key, s, q)
        for key, s in zip(keys, scored, strict=True)
        for q in preferences(s.item)
        if q.weight > 0 and np.isfinite(s.scores[[q.i, q.j]]).all()
    ]
    prompts, pairs = [key for key, _, _ in keyed_pairs], [(s, q) for _, s, q in keyed_pairs]
    weights = np.array([q.weight for _, q in pairs])
    gaps = np.array([s.scores[q.i] - s.scores[q.j] for s, q in pairs])
    p = np.array([q.p for _, q in pairs])
    longer = np.array([s.lengths[q.i] - s.lengths[q.j] for s, q in pairs])
    strengths = np.array([math.nan if q.margin is None else q.margin for _, q in pairs])
    has_strength = np.isfinite(strengths)
    scores, lengths, spread = (
        np.concatenate([getattr(s, name)[np.isfinite(s.scores)] for s in scored] or [np.zeros(0)])
        for name in ("scores", "lengths", "spread")
    )
    score_prompts = [key for key, s in zip(keys, scored, strict=True) for _ in range(int(np.isfinite(s.scores).sum()))]
    decided = p != 0.5
    return Assessment(
        accuracy=_share_of(_masked(prompts, decided), gaps[decided], weights[decided]),
        calibration=calibration(gaps, p, prompts, weights) if len(gaps) else None,
        length=trend(lengths, scores, score_prompts),
        length_within=trend(longer, gaps, prompts),
        strength=trend(strengths[has_strength], gaps[has_strength], _masked(prompts, has_strength)),
        annotators=_annotators(scored),
        spread=float(spread.mean()) if len(spread) else 0.0,
        n_responses=len(scores),
    )


def _masked(prompts: Sequence[str], mask: np.ndarray) -> list[str]:
    return [prompt for prompt, keep in zip(prompts, mask, strict=True) if keep]


def _share_of(prompts: Sequence[str], gaps: np.ndarray, weights: np.ndarray) -> Share | None:
    """The share of positive gaps, zeros counting half; None without gaps."""
    if not len(gaps):
        return None
    right = (gaps > 0) + 0.5 * (gaps == 0)
    return Share(share(clustered(prompts, right.tolist(), weights.tolist())), len(gaps))


def _annotators(scored: Sequence[ScoredItem]) -> dict[str, Share]:
    gaps: dict[str, list[tuple[str, float]]] = {}
    for s in scored:
        key = prompt_key(s.item)
        for v in comparisons(s.item.votes):
            if v.annotator is None or v.p_first in (None, 0.5):
                continue
            gap = s.scores[v.first] - s.scores[v.second]
            if math.isfinite(gap):
                gaps.setdefault(v.annotator, []).append((key, gap if (v.p_first or 0.0) > 0.5 else -gap))
    shares = {}
    for name, votes in sorted(gaps.items()):
        prompts, values = [key for key, _ in votes], np.array([gap for _, gap in votes])
        share = _share_of(prompts, values, np.ones(len(values)))
        if share is not None and share.n >= _FEW:
            shares[name] = share
    return shares


def lines(assessment: Assessment) -> list[str]:
    """The figures as a few lines of text."""
    sentences = []
    if assessment.accuracy:
        low, high = assessment.accuracy.interval
        on = _counts(assessment.accuracy.n, assessment.accuracy.prompts)
        sentences.append(f"accuracy {assessment.accuracy.value:.3f} ({low:.3f} to {high:.3f}) on {on}")
    if assessment.calibration:
        sentences.append(f"calibration: {_calibration(assessment.calibration)}")
    if assessment.length:
        sentences.append(f"length: {_trend(assessment.length, 'per token')}")
    if assessment.strength:
        sentences.append(f"stated strength: {_trend(assessment.strength, 'per unit')}")
    sentences += [
        f"annotator {name}: {share.value:.3f} on {share.n} votes" for name, share in assessment.annotators.items()
    ]
    return sentences


def _trend(fit: Trend, unit: str) -> str:
    interval = f"({fit.low:+.4f} to {fit.high:+.4f})"
    return f"score {fit.slope:+.4f} {interval} {unit}, correlation {fit.correlation:+.2f}"


def _counts(pairs: int, prompts: int) -> str:
    return plural(pairs, "pair") if pairs == prompts else f"{plural(pairs, 'pair')} of {plural(prompts, 'prompt')}"


def _calibration(c: Calibration) -> str:
    """The calibration error with its interval and its chance level, so that a small sample does not look like a bad
    model."""
    interval = "" if c.ece_low is None else f" ({c.ece_low:.3f} to {c.ece_high:.3f})"
    score = "" if c.brier_low is None else f" ({c.brier_low:.3f} to {c.brier_high:.3f})"
    comparison = "more than chance explains" if c.ece > c.null_high else "within what chance explains"
    return (
        f"expected calibration error {c.ece:.3f}{interval} on {_counts(c.n, c.prompts)}; a perfectly "
        f"calibrated model would show about {c.null:.3f} here, so this is {comparison}; Brier score "
        f"{c.brier:.3f}{score} (a coin has 0.25), log loss {c.log_loss:.3f} nats (a coin has 0.693)"
    )


def sections(assessment: Assessment) -> list[Section]:
    """The report's sections: a reliability plot, the trends, and the annotators if known."""
    parts = []
    if assessment.calibration:
        parts.append(_reliability(assessment.calibration))
    rows = [
        (name, t.slope, t.low, t.high, t.correlation, t.n)
        for name, t in (
            ("tokens of a response", assessment.length),
            ("difference in tokens inside a pair", assessment.length_within),
            ("stated strength of a preference", assessment.strength),
        )
        if t
    ]
    if rows:
        text = "Score per unit of each, by least squares; 95% intervals over prompts. A reward that follows length can "
        text += "be raised by writing more."
        table = Table(("", "slope", "low", "high", "correlation", "n"), tuple(rows))
        parts.append(Section("What the score follows", text, table=table))
    if assessment.annotators:
        cells = tuple((name, s.value, *s.interval, s.n) for name, s in assessment.annotators.items())
        text = f"How often the score agrees with each annotator who cast at least {_FEW} votes; 95% intervals over "
        text += "prompts."
        parts.append(
            Section("Annotators", text, table=Table(("annotator", "agreement", "low", "high", "votes"), cells))
        )
    return parts


def _reliability(c: Calibration) -> Section:
    points = tuple((b.confidence, b.right) for b in c.bins)
    series = (
        Series("perfectly calibrated", ((0.5, 0.5), (1.0, 1.0)), OPTIMUM, "dashed"),
        Series(
            "held-out pairs",
            points,
            HELD_OUT,
            "dots",
            tuple(b.right_low for b in c.bins),
            tuple(b.right_high for b in c.bins),
        ),
    )
    text = _calibration(c)
    text = f"{text[:1].upper()}{text[1:]}. Below the dashed line the scores are overconfident."
    rows = tuple((f"{b.low:.2f} to {b.high:.2f}", b.confidence, b.right, b.n) for b in c.bins)
    return Section(
        "Reliability",
        text,
        LineChart(series, "stated probability of the favoured response", "share that was right"),
        Table(("confidence", "mean", "right", "pairs"), rows),
    )
