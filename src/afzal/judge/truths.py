"""An answer beside known truth: how often it is right, by category, and how many truths are worth how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.aggregate import POINTS, Aggregated, By, classes_of, credit, ordering, without_bad
from afzal.judge.labels import CLASSES, Labels
from afzal.judge.plain import finite
from afzal.stats import annotators
from afzal.stats.calibration import brier_score
from afzal.stats.intervals import Interval, clustered, share
from afzal.text import interval, number

DRAWS = 20
"""Random choices of the pairs whose truth is taken as known, with seeds 0 to 19."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many pairs of known truth there are, and the share on which an answer is right, a tie or none being half.

    ``low`` and ``high`` are its 95 % interval over prompts.
    """

    pairs: int
    right: float
    low: float | None
    high: float | None


def right_on(p_first: np.ndarray, labels: Labels, at: np.ndarray) -> Share:
    """How right the probabilities ``[N]`` are on the pairs ``at`` (bool ``[N]``, all of known truth)."""
    gold = ordering(labels.gold)
    right = credit(np.nan_to_num(p_first, nan=0.5), POINTS[gold])[at]
    known = share(clustered([labels.prompts[k] for k in np.flatnonzero(at)], right.tolist()))
    return Share(len(right), float(right.mean()), known.low, known.high)


def by_category(p_first: np.ndarray, labels: Labels) -> dict[str, Share]:
    """The pairs of known truth by category, in order of the names; empty where the rows name fewer than two."""
    gold = ordering(labels.gold)
    names = sorted({c for c, g in zip(labels.categories, gold, strict=False) if g >= 0})
    if len(names) < 2:
        return {}
    own = np.array(labels.categories)
    return {name or "none": right_on(p_first, labels, (own == name) & (gold >= 0)) for name in names}


def brier(p_first: np.ndarray, labels: Labels) -> Interval | None:
    """Mean squared distance of the probability ``[N]`` from the truth (1 first, 0 second, 1/2 a tie), over prompts.

    0 is perfect, and 1/4 is what 1/2 everywhere gets where all truths name a winner. None without truths.
    """
    gold = ordering(labels.gold)
    at = np.flatnonzero(gold >= 0)
    losses = (np.nan_to_num(p_first, nan=0.5) - POINTS[gold])[at] ** 2
    return brier_score(losses, [labels.prompts[k] for k in at]) if len(at) else None


@dataclass(frozen=True, slots=True)
class Learned:
    """What one way of aggregating does with some truths known, on the others, over :data:`DRAWS` choices of them.

    Attributes:
        right: the mean share that is right.
        least: the worst of the choices.
        rank_correlation: the mean of Spearman's, between the accuracies of the annotators that the way estimates and
            those on all pairs of known truth; None where they do not vary.
    """

    right: float
    least: float
    rank_correlation: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """How right weights from known truth, and Dawid-Skene anchored by it, are on the pairs whose truth is held out.

    Attributes:
        truths: pairs of known truth in all.
        by_size: for each number of truths taken as known, ``gold`` and ``dawid_skene``; the latter is missing where it
            did not converge.
        in_sample: the share right by weights from all truths, on these same pairs: no estimate of what they would do on
            others, and no ceiling either, since weights by accuracy are the best only where errors are independent.
    """

    truths: int
    by_size: Mapping[int, Mapping[str, Learned]]
    in_sample: float


def curve(labels: Labels, sizes: Sequence[int]) -> Curve:
    """What so many pairs of known truth would be worth, measured on pairs whose truth is known.

    Whole prompts are chosen at random until their pairs suffice. The other pairs of the last prompt are neither known
    nor measured on.

    Raises:
        AfzalError: a size leaves no pair to measure on, or all pairs of known truth are of one prompt.
    """
    table, gold = without_bad(labels.table), ordering(labels.gold)
    at = np.flatnonzero((gold >= 0) & (table >= 0).any(1))
    _check(sizes, len(at))
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(labels.prompts[k] for k in at))}
    prompts = np.array([number[labels.prompts[k]] for k in at])
    truth = accuracy_of(table, gold)
    by_size: dict[int, dict[str, Learned]] = {}
    for size in sizes:
        choices = [_choice(at, prompts, size, seed) for seed in range(DRAWS)]
        if not all(len(rest) for _, rest in choices):
            raise AfzalError(
                f"{size} pairs of known truth leave nothing to measure on",
                where="--gold-sizes",
                why=f"whole prompts are chosen, and there are {len(number)}",
                remedy="smaller sizes",
            )
        found = {name: _learned(way, table, gold, choices, truth) for name, way in _WAYS.items()}
        by_size[size] = {name: learned for name, learned in found.items() if learned is not None}
    everything = _by_gold(table, gold)[0]
    return Curve(len(at), by_size, float(credit(everything, POINTS[gold])[at].mean()))


def _check(sizes: Sequence[int], known: int) -> None:
    for size in sizes:
        if not 1 <= size < known:
            raise AfzalError(
                f"{size} pairs of known truth cannot be tried",
                where="--gold-sizes",
                why=f"{known or 'no'} labelled pairs have a known truth, and some must be left to measure on",
                remedy=f"numbers from 1 to {known - 1}" if known > 1 else "rows with their truth, or --gold FILE",
            )


def accuracy_of(table: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """``[R]`` the share of an annotator's labels that are the known truth; NaN where no truth is known of any."""
    known = (gold >= 0)[:, None] & (table >= 0)
    with np.errstate(invalid="ignore"):
        return (known & (table == gold[:, None])).sum(0) / known.sum(0)


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    """Spearman's, over the annotators of whom both are known; None for fewer than two, or where one does not vary."""
    from scipy.stats import spearmanr

    both = np.isfinite(one) & np.isfinite(two)
    if both.sum() < 2 or np.ptp(one[both]) == 0 or np.ptp(two[both]) == 0:
        return None
    rank: Any = spearmanr(one[both], two[both])[0]
    return float(rank)


def _choice(at: np.ndarray, prompts: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the pairs ``at`` with known truth, those whose truth is taken as known and those that are measured on."""
    turn = np.argsort(np.random.default_rng(seed).permutation(int(prompts.max()) + 1))[prompts]
    order = np.argsort(turn, kind="stable")
    return at[order[:size]], at[turn > turn[order[size - 1]]]


Way = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From labels ``[N, R]`` and truths ``[N]`` to probabilities of the first ``[N]`` and what it thinks of each annotator
``[R]``; larger is better."""


def _by_gold(table: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = classes_of(table, gold)
    weights = annotators.log_odds_weights(table, gold, classes)
    return annotators.weighted_vote(table, weights, classes) @ POINTS[:classes], weights


def _by_dawid_skene(table: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = classes_of(table, gold)
    fit = annotators.dawid_skene(table, classes, gold=gold)
    return fit.posterior @ POINTS[:classes], fit.accuracy


_WAYS: dict[str, Way] = {"gold": _by_gold, "dawid_skene": _by_dawid_skene}


def _learned(
    way: Way,
    table: np.ndarray,
    gold: np.ndarray,
    choices: Sequence[tuple[np.ndarray, np.ndarray]],
    truth: np.ndarray,
) -> Learned | None:
    right, ranks = [], []
    for chosen, rest in choices:
        known = np.full(len(gold), -1)
        known[chosen] = gold[chosen]
        try:
            answer, thought = way(table, known)
        except ValueError:  # Dawid-Skene did not converge
            return None
        right.append(float(credit(answer, POINTS[gold])[rest].mean()))
        ranks.append(rank_correlation(thought, truth))
    told = [rank for rank in ranks if rank is not None]
    return Learned(float(np.mean(right)), min(right), float(np.mean(told)) if len(told) == len(ranks) else None)


def as_plain(found: Aggregated, labels: Labels, by: By) -> dict[str, Any]:
    """What known truth says of an answer that did not use it, with a table by category and findings."""
    at = ordering(labels.gold) >= 0
    if not at.any():
        return {}
    right, loss = right_on(found.p_first, labels, at), brier(found.p_first, labels)
    assert loss is not None
    said = f"The answer by {by} is right on {_percent(right)} of {right.pairs:,} pairs of known truth, a tie half; "
    shown = f"{number(loss.value, 3)} {interval(loss.low, loss.high)}".rstrip()
    truths = {name: int((labels.gold == k).sum()) for k, name in enumerate(CLASSES) if (labels.gold == k).any()}
    body: dict[str, Any] = {
        "right": right.right,
        "right_low": right.low,
        "right_high": right.high,
        "brier": loss.value,
        "brier_low": loss.low,
        "brier_high": loss.high,
        "truths": truths,
        "findings": [f"{said}its Brier score is {shown}."],
        "tables": [],
    }
    if shares := by_category(found.p_first, labels):
        body["by_category"] = {name: asdict(own) for name, own in shares.items()}
        rows = [[name, f"{own.pairs:,}", _percent(own)] for name, own in shares.items()]
        words = f"The answer by {by} on pairs of known truth, a tie half."
        columns = ["category", "pairs", "right"]
        body["tables"].append({"title": "Right by category", "words": words, "columns": columns, "rows": rows})
    if found.fit is not None:
        rank = rank_correlation(found.fit.accuracy, accuracy_of(without_bad(labels.table), ordering(labels.gold)))
        body["estimated_with_true"] = finite(rank)
        if rank is not None:
            body["findings"].append(
                "The accuracies that Dawid-Skene gives the annotators and those on known truth have a rank correlation "
                f"of {rank:.2f}."
            )
    return body


def _percent(found: Share) -> str:
    known = "" if found.low is None or found.high is None else f" [{found.low:.1%}, {found.high:.1%}]"
    return f"{found.right:.1%}{known}"


def curve_as_plain(found: Curve) -> dict[str, Any]:
    """The same as plain values, with a table and a finding."""
    rows = []
    for size, ways in found.by_size.items():
        cells = [f"{size:,}"]
        for name in _WAYS:
            learned = ways.get(name)
            cells += ["did not converge", ""] if learned is None else [f"{learned.right:.1%}", f"{learned.least:.1%}"]
        rows.append(cells)
    rows.append([f"all {found.truths:,}, in sample", f"{found.in_sample:.1%}", "", "", ""])
    words = (
        f"The share of the other pairs that is right: the mean and the least of {DRAWS} random choices of the truths. "
        "The last line is measured on the truths that it was learned from, so that it is no estimate."
    )
    columns = ["known truths", "weights by gold", "least", "Dawid-Skene anchored", "least"]
    table = {"title": "How much known truth is worth", "words": words, "columns": columns, "rows": rows}
    sizes = {str(n): {way: asdict(learned) for way, learned in ways.items()} for n, ways in found.by_size.items()}
    plain = {"truths": found.truths, "draws": DRAWS, "by_size": sizes, "in_sample": found.in_sample}
    return {"gold_sizes": plain, "tables": [table]}
