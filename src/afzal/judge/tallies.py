"""Votes without annotators' names: counts of people per option, and ranked groups of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from afzal.judge.figures import interval
from afzal.records import Comparison, Item, Rating
from afzal.stats import agreement, resampling
from afzal.stats.intervals import Interval

VOTERS = "voters"


def are_tallies(items: Sequence[Item]) -> bool:
    """Whether rows hold counts of people per response (scores on the axis ``voters``)."""
    return any(isinstance(v, Rating) and v.axis == VOTERS for item in items for v in item.votes)


def are_ranked(items: Sequence[Item]) -> bool:
    """Whether rows rank their responses without naming an annotator."""
    kinds = {(v.kind, v.annotator) for item in items for v in item.votes if isinstance(v, Rating)}
    others = any(not isinstance(v, Rating) for item in items for v in item.votes)
    return not others and kinds == {("rank", None)}


def of_voters(items: Sequence[Item], source: str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """A report on counts of people per option, compared with the right option if the rows name it.

    An option without a count is missing; it does not count as chosen by nobody.
    """
    counted = [
        {v.response: v.value for v in item.votes if isinstance(v, Rating) and v.axis == VOTERS} for item in items
    ]
    size = max(len(item.responses) for item in items)
    table = np.array([[counts.get(k, 0.0) for k in range(size)] for counts in counted])
    voted = table.sum(1) > 0
    right = np.array([_right(item) for item in items])
    prompts = [item.id for item, some in zip(items, voted, strict=True) if some]
    how = {"resamples": resamples, "seed": seed}
    named = _voter_figures(table[voted], right[voted], prompts, **how) if voted.any() else {}
    lengths = Counter(len(counts) for counts in counted)
    facts = [
        ("rows", f"{len(items):,}"),
        ("votes", f"{int(table.sum()):,}"),
        ("votes per row", _spread(table[voted].sum(1))),
        ("rows without votes", f"{int((~voted).sum()):,}"),
        ("options counted", ", ".join(f"{k} in {n:,}" for k, n in sorted(lengths.items()))),
        ("rows that name the right option", f"{int((right >= 0).sum()):,}"),
    ]
    findings = ["An option without a count in a row is missing; it does not count as chosen by nobody."]
    figures = [{"name": name, **interval(figure)} for name, figure in named.items()]
    return _body("Voters", source, "voters", facts, findings, figures)


def _voter_figures(table: np.ndarray, right: np.ndarray, prompts: Sequence[str], **how: int) -> dict[str, Interval]:
    """The figures of rows with votes: ``[N, options]`` counts and the right options, -1 where none is named."""
    shares = table / table.sum(1, keepdims=True)
    top = shares == shares.max(1, keepdims=True)
    alpha = resampling.sums(agreement.alpha_sums(table), prompts, **how).interval(agreement.alpha_of)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
    named = {
        "Krippendorff's alpha of the votes": alpha,
        "entropy of a row's votes, nats": _mean(entropy, prompts, **how),
    }
    at = np.flatnonzero(right >= 0)
    if len(at):
        hits = (top[at, right[at]] & (top[at].sum(1) == 1)).astype(float)
        some = [prompts[k] for k in at.tolist()]
        named |= {
            "most people are right": _mean(hits, some, **how),
            "share of votes on the right option": _mean(shares[at, right[at]], some, **how),
        }
    return named


def _spread(votes: np.ndarray) -> str:
    return f"{votes.min():,.0f} to {votes.max():,.0f}, median {np.median(votes):,.0f}" if len(votes) else "none"


def _mean(values: np.ndarray, prompts: Sequence[str], **how: int) -> Interval:
    known = resampling.sums(np.stack([np.ones(len(values)), values], 1), prompts, **how)
    return known.interval(lambda s: s[..., 1] / s[..., 0])


def _right(item: Item) -> int:
    """The response that the row itself names as right; -1 if it names none."""
    named = {v.first for v in item.votes if isinstance(v, Comparison) and v.axis == "answer"}
    return next(iter(named)) if len(named) == 1 else -1


def of_ranks(items: Sequence[Item], source: str) -> dict[str, Any]:
    """A report on ranked groups: their number and sizes, the pairs they make, and groups with equal ranks."""
    groups = [[v.value for v in item.votes if isinstance(v, Rating)] for item in items]
    groups = [ranks for ranks in groups if len(ranks) > 1]
    sizes = sorted(Counter(map(len, groups)).items())
    pairs = sum(len(ranks) * (len(ranks) - 1) // 2 for ranks in groups)
    facts = [
        ("ranked groups", f"{len(groups):,}"),
        ("groups by size", ", ".join(f"{size}: {n}" for size, n in sizes)),
        ("pairs", f"{pairs:,}"),
        ("groups with equal ranks", f"{sum(len(set(ranks)) < len(ranks) for ranks in groups):,}"),
    ]
    findings = ["The rows rank their answers without naming annotators, so there is no agreement to report."]
    return _body("Rankings", source, "ranks", facts, findings, [])


def _body(
    title: str,
    source: str,
    kind: str,
    facts: list[tuple[str, str]],
    findings: list[str],
    figures: list[dict[str, Any]],
) -> dict[str, Any]:
    about = {"title": title, "subtitle": source, "unit": "value", "rule": None, "kind": kind, "figures_words": ""}
    return {**about, "facts": facts, "findings": findings, "figures": figures, "lines": [], "differences": []}
