"""Votes without annotators' names: counts of people per option, and ranked groups of answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from afzal.judge.figures import interval
from afzal.records import Comparison, Item, Rating, prompt_key
from afzal.stats import agreement, resampling
from afzal.stats.intervals import Interval

VOTERS = "voters"


def are_tallies(items: Sequence[Item]) -> bool:
    """Whether rows hold counts of people per response (scores on the axis ``voters``)."""
    return any(isinstance(v, Rating) and v.axis == VOTERS for item in items for v in item.votes)


def are_ranked(items: Sequence[Item]) -> bool:
    """Whether rows rank their responses without naming an annotator."""
    kinds = {(v.kind, v.annotator) for item in items for v in item.votes if isinstance(v, Rating)}
    has_other_votes = any(not isinstance(v, Rating) for item in items for v in item.votes)
    return not has_other_votes and kinds == {("rank", None)}


def of_voters(items: Sequence[Item], source: str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """A report on counts of people per option, compared with the right option if the rows name it.

    An option without a count is missing; it does not count as chosen by nobody.
    """
    counted = [
        {v.response: v.value for v in item.votes if isinstance(v, Rating) and v.axis == VOTERS} for item in items
    ]
    size = max(len(item.responses) for item in items)
    table = np.array([[counts.get(k, 0.0) for k in range(size)] for counts in counted])
    has_votes = table.sum(1) > 0
    right = np.array([_right(item) for item in items])
    prompts = [prompt_key(item) for item, has_any in zip(items, has_votes, strict=True) if has_any]
    options = {"resamples": resamples, "seed": seed}
    by_name = _voter_figures(table[has_votes], right[has_votes], prompts, **options) if has_votes.any() else {}
    lengths = Counter(len(counts) for counts in counted)
    facts = [
        ("rows", f"{len(items):,}"),
        ("votes", f"{int(table.sum()):,}"),
        ("votes per row", _spread(table[has_votes].sum(1))),
        ("rows without votes", f"{int((~has_votes).sum()):,}"),
        ("options counted", ", ".join(f"{k} in {n:,}" for k, n in sorted(lengths.items()))),
        ("rows that name the right option", f"{int((right >= 0).sum()):,}"),
    ]
    findings = ["An option without a count in a row is missing; it does not count as chosen by nobody."]
    figures = [{"name": name, **interval(figure)} for name, figure in by_name.items()]
    return _body("Voters", source, "voters", facts, findings, figures)


def _voter_figures(table: np.ndarray, right: np.ndarray, prompts: Sequence[str], **options: int) -> dict[str, Interval]:
    """The figures of rows with votes: ``[N, options]`` counts and the right options, -1 where none is named."""
    shares = table / table.sum(1, keepdims=True)
    top = shares == shares.max(1, keepdims=True)
    alpha = resampling.sums(agreement.alpha_sums(table), prompts, **options).interval(agreement.alpha_of)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
    by_name = {
        "Krippendorff's alpha of the votes": alpha,
        "entropy of a row's votes, nats": _mean(entropy, prompts, **options),
    }
    known = np.flatnonzero(right >= 0)
    if len(known):
        hits = (top[known, right[known]] & (top[known].sum(1) == 1)).astype(float)
        known_prompts = [prompts[k] for k in known.tolist()]
        by_name |= {
            "most people are right": _mean(hits, known_prompts, **options),
            "share of votes on the right option": _mean(shares[known, right[known]], known_prompts, **options),
        }
    return by_name


def _spread(votes: np.ndarray) -> str:
    return f"{votes.min():,.0f} to {votes.max():,.0f}, median {np.median(votes):,.0f}" if len(votes) else "none"


def _mean(values: np.ndarray, prompts: Sequence[str], **options: int) -> Interval:
    known = resampling.sums(np.stack([np.ones(len(values)), values], 1), prompts, **options)
    return known.interval(lambda s: s[..., 1] / s[..., 0])


def _right(item: Item) -> int:
    """The response that the row itself names as right; -1 if it names none."""
    answers = {v.first for v in item.votes if isinstance(v, Comparison) and v.axis == "answer"}
    return next(iter(answers)) if len(answers) == 1 else -1


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
    header = {"title": title, "subtitle": source, "unit": "value", "rule": None, "kind": kind, "figures_words": ""}
    return {**header, "facts": facts, "findings": findings, "figures": figures, "lines": [], "differences": []}
