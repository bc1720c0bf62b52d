"""Aggregated answers compared with known truth: accuracy, by category too, and the value of more known truths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.aggregate import POINTS, Aggregation, By, classes_of, credit, ordering, without_bad
from afzal.judge.figures import finite
from afzal.judge.labels import CLASSES, Labels
from afzal.stats import annotators
from afzal.stats.calibration import brier_score
from afzal.stats.intervals import Interval, clustered, share
from afzal.text import interval, number

DRAWS = 20
"""Number of random choices of the pairs whose truth is taken as known, with seeds 0 to 19."""


@dataclass(frozen=True, slots=True)
class Share:
    """The number of pairs of known truth, and the share on which an answer is right; a tie or no answer counts half.

    ``low`` and ``high`` are the share's 95% interval over prompts.
    """

    pairs: int
    right: float
    low: float | None
    high: float | None


def accuracy_on(p_first: np.ndarray, labels: Labels, selected: np.ndarray) -> Share:
    """The accuracy of the probabilities ``[N]`` on the pairs ``selected`` (bool ``[N]``, all of known truth)."""
    gold = ordering(labels.gold)
    right = credit(np.nan_to_num(p_first, nan=0.5), POINTS[gold])[selected]
    known = share(clustered([labels.prompts[k] for k in np.flatnonzero(selected)], right.tolist()))
    return Share(len(right), float(right.mean()), known.low, known.high)


def by_category(p_first: np.ndarray, labels: Labels) -> dict[str, Share]:
    """Accuracy on the pairs of known truth by category, in order of the names; empty for fewer than two categories."""
    gold = ordering(labels.gold)
    names = sorted({c for c, g in zip(labels.categories, gold, strict=False) if g >= 0})
    if len(names) < 2:
        return {}
    categories = np.array(labels.categories)
    return {name or "none": accuracy_on(p_first, labels, (categories == name) & (gold >= 0)) for name in names}


def brier(p_first: np.ndarray, labels: Labels) -> Interval | None:
    """Mean squared distance of the probability ``[N]`` from the truth (1 first, 0 second, 1/2 tie), over prompts.

    0 is perfect; a constant 1/2 scores 1/4 if all truths name a winner. None without truths.
    """
    gold = ordering(labels.gold)
    known = np.flatnonzero(gold >= 0)
    losses = (np.nan_to_num(p_first, nan=0.5) - POINTS[gold])[known] ** 2
    return brier_score(losses, [labels.prompts[k] for k in known]) if len(known) else None


@dataclass(frozen=True, slots=True)
class HeldOutAccuracy:
    """The accuracy of one aggregation method with some truths known, on the others, over :data:`DRAWS` choices of them.

    Attributes:
        right: the mean accuracy.
        least: the lowest accuracy of all choices.
        rank_correlation: the mean Spearman correlation between the annotators' accuracies as estimated by the method
            and as measured on all pairs of known truth; None if they do not vary.
    """

    right: float
    least: float
    rank_correlation: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """The held-out accuracy of weights from known truth and of Dawid-Skene anchored by it.

    Attributes:
        truths: total number of pairs of known truth.
        by_size: for each number of truths taken as known, ``gold`` and ``dawid_skene``; the latter is missing if it did
            not converge.
        in_sample: accuracy of weights from all truths on these same pairs. It does not estimate the accuracy on other
            pairs, nor is it a ceiling, since weights by accuracy are optimal only if errors are independent.
    """

    truths: int
    by_size: Mapping[int, Mapping[str, HeldOutAccuracy]]
    in_sample: float


def curve(labels: Labels, sizes: Sequence[int]) -> Curve:
    """What each number of known truths would be worth, measured on pairs whose truth is known.

    Whole prompts are chosen at random until they have enough pairs. The surplus pairs of the last prompt are used
    neither as known nor for measuring.

    Raises:
        AfzalError: a size leaves no pair to measure on, or all pairs of known truth share one prompt.
    """
    table, gold = without_bad(labels.table), ordering(labels.gold)
    known_pairs = np.flatnonzero((gold >= 0) & (table >= 0).any(1))
    _check(sizes, len(known_pairs))
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(labels.prompts[k] for k in known_pairs))}
    prompts = np.array([number[labels.prompts[k]] for k in known_pairs])
    truth = accuracy_of(table, gold)
    by_size: dict[int, dict[str, HeldOutAccuracy]] = {}
    for size in sizes:
        choices = [_choice(known_pairs, prompts, size, seed) for seed in range(DRAWS)]
        if not all(len(rest) for _, rest in choices):
            raise AfzalError(
                f"{size} pairs of known truth leave no pair to measure on",
                where="--gold-sizes",
                why=f"truths are chosen by prompt, and there are {len(number)} prompts",
                remedy="smaller sizes",
            )
        results = {name: _held_out_accuracy(method, table, gold, choices, truth) for name, method in _METHODS.items()}
        by_size[size] = {name: result for name, result in results.items() if result is not None}
    answer = _by_gold(table, gold)[0]
    return Curve(len(known_pairs), by_size, float(credit(answer, POINTS[gold])[known_pairs].mean()))


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
    """``[R]`` the accuracy of each annotator's labels on known truths; NaN without any."""
    known = (gold >= 0)[:, None] & (table >= 0)
    with np.errstate(invalid="ignore"):
        return (known & (table == gold[:, None])).sum(0) / known.sum(0)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation over the annotators for whom both are known; None for fewer than two or without
    variation."""
    from scipy.stats import spearmanr

    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2 or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return None
    rank: Any = spearmanr(first[both], second[both])[0]
    return float(rank)


def _choice(known_pairs: np.ndarray, prompts: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split pairs of known truth into those whose truth is taken as known and those to measure on."""
    turn = np.argsort(np.random.default_rng(seed).permutation(int(prompts.max()) + 1))[prompts]
    order = np.argsort(turn, kind="stable")
    return known_pairs[order[:size]], known_pairs[turn > turn[order[size - 1]]]


Method = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From labels ``[N, R]`` and truths ``[N]`` to probabilities of the first ``[N]`` and an estimated quality of each
annotator ``[R]`` (larger is better)."""


def _by_gold(table: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = classes_of(table, gold)
    weights = annotators.log_odds_weights(table, gold, classes)
    return annotators.weighted_vote(table, weights, classes) @ POINTS[:classes], weights


def _by_dawid_skene(table: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = classes_of(table, gold)
    fit = annotators.dawid_skene(table, classes, gold=gold)
    return fit.posterior @ POINTS[:classes], fit.accuracy


_METHODS: dict[str, Method] = {"gold": _by_gold, "dawid_skene": _by_dawid_skene}


def _held_out_accuracy(
    method: Method,
    table: np.ndarray,
    gold: np.ndarray,
    choices: Sequence[tuple[np.ndarray, np.ndarray]],
    truth: np.ndarray,
) -> HeldOutAccuracy | None:
    right, ranks = [], []
    for chosen, rest in choices:
        known = np.full(len(gold), -1)
        known[chosen] = gold[chosen]
        try:
            answer, estimated = method(table, known)
        except ValueError:  # Dawid-Skene did not converge
            return None
        right.append(float(credit(answer, POINTS[gold])[rest].mean()))
        ranks.append(rank_correlation(estimated, truth))
    defined = [rank for rank in ranks if rank is not None]
    return HeldOutAccuracy(
        float(np.mean(right)), min(right), float(np.mean(defined)) if len(defined) == len(ranks) else None
    )


def as_plain(answer: Aggregation, labels: Labels, by: By) -> dict[str, Any]:
    """The accuracy of an answer that did not use the known truth, with a table by category and findings."""
    at = ordering(labels.gold) >= 0
    if not at.any():
        return {}
    right, loss = accuracy_on(answer.p_first, labels, at), brier(answer.p_first, labels)
    assert loss is not None
    start = (
        f"The answer by {by} is right on {_percent(right)} of {right.pairs:,} pairs of known truth (a tie is half); "
    )
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
        "findings": [f"{start}its Brier score is {shown}."],
        "tables": [],
    }
    if shares := by_category(answer.p_first, labels):
        body["by_category"] = {name: asdict(each) for name, each in shares.items()}
        rows = [[name, f"{each.pairs:,}", _percent(each)] for name, each in shares.items()]
        words = f"The answer by {by} on pairs of known truth (a tie is half)."
        columns = ["category", "pairs", "right"]
        body["tables"].append({"title": "Right by category", "words": words, "columns": columns, "rows": rows})
    if answer.fit is not None:
        rank = rank_correlation(answer.fit.accuracy, accuracy_of(without_bad(labels.table), ordering(labels.gold)))
        body["estimated_with_true"] = finite(rank)
        if rank is not None:
            body["findings"].append(
                "The accuracies that Dawid-Skene gives the annotators and those on known truth have a rank correlation "
                f"of {rank:.2f}."
            )
    return body


def _percent(accuracy: Share) -> str:
    known = "" if accuracy.low is None or accuracy.high is None else f" [{accuracy.low:.1%}, {accuracy.high:.1%}]"
    return f"{accuracy.right:.1%}{known}"


def curve_as_plain(learned_curve: Curve) -> dict[str, Any]:
    """The curve as plain values, with a table."""
    rows = []
    for size, ways in learned_curve.by_size.items():
        cells = [f"{size:,}"]
        for name in _METHODS:
            learned = ways.get(name)
            cells += ["did not converge", ""] if learned is None else [f"{learned.right:.1%}", f"{learned.least:.1%}"]
        rows.append(cells)
    rows.append([f"all {learned_curve.truths:,}, in sample", f"{learned_curve.in_sample:.1%}", "", "", ""])
    words = (
        f"Accuracy on the other pairs: mean and minimum over {DRAWS} random choices of the known truths. The last line "
        "is measured on the same truths that the weights were learned from, so it is not an estimate."
    )
    columns = ["known truths", "weights by gold", "least", "Dawid-Skene anchored", "least"]
    table = {"title": "How much known truth is worth", "words": words, "columns": columns, "rows": rows}
    sizes = {
        str(n): {way: asdict(learned) for way, learned in ways.items()} for n, ways in learned_curve.by_size.items()
    }
    plain = {"truths": learned_curve.truths, "draws": DRAWS, "by_size": sizes, "in_sample": learned_curve.in_sample}
    return {"gold_sizes": plain, "tables": [table]}
