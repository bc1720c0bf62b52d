"""Aggregation of several annotators' labels into one preference per pair, with warnings when not to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from afzal.data import judges_of, naming
from afzal.errors import AfzalError
from afzal.judge.labels import BOTH_BAD, CLASSES, FIRST, SECOND, TIE, Labels, Place
from afzal.records import Comparison, Item, Rating
from afzal.stats import annotators
from afzal.stats.agreement import counts

By = Literal["mean", "jeffreys", "majority", "dawid_skene", "crowd_bt", "gold"]
LabelKind = Literal["soft", "weighted"]
UNSUPERVISED = ("dawid_skene", "crowd_bt")
CROWD_RIDGE = 0.1  # on strengths in nats: the prior of a pair's difference has standard deviation 3.2
FEW = 20  # labels per annotator below which a confusion matrix is mostly noise
HELD_OUT = 20  # pairs of known truth needed to believe an anchored answer against the majority
SURE = 0.9  # a pair is unsure if the posterior of its likeliest class is below this
PARTS_AT = 0.05  # Dawid-Skene is not believed if it differs from the majority on a larger share of decided pairs


@dataclass(frozen=True, slots=True, eq=False)
class Aggregation:
    """One answer per pair.

    Attributes:
        p_first: ``[N]`` probability that the first response is better (a tie is 0.5); NaN without an order: no label,
            or most labels say that both are bad.
        overturned: pairs, among those the majority decides, on which the answer names a different winner.
        decided: pairs that the majority decides.
        dawid_skene_overturned: the same for Dawid-Skene without known truth, whatever the method asked for; None with
            fewer than three annotators.
        warnings: reasons why the answer may be wrong, in words.
        eta: reliability of each annotator (Crowd-BT only): 1/2 is a coin, below it the labels are reversed.
        held_out: number of pairs of known truth, and the shares of them, held out, on which the anchored answer and the
            majority are right (Dawid-Skene with known truth only).
        fit: the fit of Dawid and Skene's model (``dawid_skene`` only).
    """

    p_first: np.ndarray
    overturned: int
    decided: int
    dawid_skene_overturned: int | None
    warnings: tuple[str, ...]
    eta: tuple[float, ...] | None = None
    held_out: tuple[int, float, float] | None = None
    fit: annotators.DawidSkene | None = None

    def soft_share(self) -> float:
        """The share of answered pairs whose answer is not certain: a tie or a split vote."""
        known = self.p_first[np.isfinite(self.p_first)]
        return float(((known > 0) & (known < 1)).mean()) if len(known) else 0.0

    def histogram(self) -> dict[str, int]:
        """The number of pairs by label (the probability of the first answer to four digits), in order."""
        values, counts = np.unique(self.p_first[np.isfinite(self.p_first)].round(4), return_counts=True)
        return {f"{value:.4f}": int(count) for value, count in zip(values, counts, strict=True)}

    def right(self, gold: np.ndarray) -> float | None:
        """How often the answer names the true winner ``[N]``; a tie or no answer counts half. None without truths."""
        known = np.flatnonzero(ordering(gold) >= 0)
        p = np.nan_to_num(self.p_first, nan=0.5)[known]
        return float(credit(p, POINTS[gold[known]]).mean()) if len(known) else None

    @property
    def doubtful(self) -> bool:
        """Whether the annotators disagree too much for an unsupervised answer to be believed."""
        return self.dawid_skene_overturned is not None and self.dawid_skene_overturned > PARTS_AT * max(1, self.decided)

    @property
    def refused(self) -> bool:
        """Whether the answer contradicts the majority on too many pairs to be believed.

        A supervised answer is believed against the majority only if held-out pairs of known truth support it.
        """
        if self.overturned <= PARTS_AT * max(1, self.decided):
            return False
        n, anchored, majority = self.held_out or (0, 0.0, 0.0)
        return not (n >= HELD_OUT and anchored > majority)


def aggregate(labels: Labels, by: By = "mean", *, anchored: bool = True) -> Aggregation:
    """Aggregate the labels that order a pair (first, second, tie).

    Args:
        anchored: whether Dawid-Skene may use the pairs of known truth; verdict files have them for measuring judges.
        by: ``mean``, the share of the votes (a soft label); ``jeffreys``, the same with half a vote added for each
            response, so that few votes are never certain (the mean under Jeffreys' prior); ``majority``, the most
            frequent label, an even split being a tie; ``dawid_skene``, weights by each annotator's confusion matrix,
            unsupervised, or anchored by the pairs of known truth if there are any; ``crowd_bt``, Bradley-Terry
            strengths of the responses with a reliability per annotator; ``gold``, weights by each annotator's accuracy
            on the pairs of known truth.

    Raises:
        AfzalError: ``gold`` without a labelled pair of known truth.
    """
    table = without_bad(labels.table)
    bad = counts(labels.table, len(CLASSES))[:, BOTH_BAD]
    n_votes = (table >= 0).sum(1)
    majority = _majority(table)
    unsupervised = _unsupervised(table) if table.shape[1] >= 3 and n_votes.max(initial=0) >= 3 else None
    eta = checked = fit = None
    known = ordering(labels.gold)
    if by == "crowd_bt":
        answer, eta = _crowd_bt(table, labels.pairs)
    elif by == "dawid_skene":
        fit = _require_fit(unsupervised)
        if anchored and _is_anchored(table, known):
            fit, checked = _dawid_skene(table, known), _held_out(table, known, majority)
        answer = _points(fit.posterior)
    elif by in ("mean", "jeffreys"):
        answer = _mean(labels, n_votes, by)
    else:
        answer = _answer(table, known, by)
    answer = np.where((n_votes > 0) & (bad <= n_votes), answer, np.nan)
    decided = int((np.isfinite(majority) & (majority != 0.5)).sum())
    ds_moved = None if unsupervised is None else _count_overturned(_points(unsupervised.posterior), majority)
    answered = Aggregation(answer, _count_overturned(answer, majority), decided, ds_moved, (), eta, checked, fit)
    return replace(answered, warnings=tuple(_warnings(answered, labels, by)))


def without_bad(table: np.ndarray) -> np.ndarray:
    """The labels that order a pair; -1 for "both are bad" and for no label."""
    return np.where(table == BOTH_BAD, -1, table)


def ordering(gold: np.ndarray) -> np.ndarray:
    """The truths that order a pair; -1 for others."""
    return np.where((gold >= 0) & (gold < 3), gold, -1)


def classes_of(table: np.ndarray, gold: np.ndarray) -> int:
    """The number of classes: first and second, and tie if a label or a truth is one."""
    return 3 if (table == TIE).any() or (gold == TIE).any() else 2


def _is_anchored(table: np.ndarray, known: np.ndarray) -> bool:
    return bool(((known >= 0)[:, None] & (table >= 0)).any())


def _held_out(table: np.ndarray, known: np.ndarray, majority: np.ndarray) -> tuple[int, float, float]:
    """(number of pairs, accuracy of Dawid-Skene, accuracy of the majority), by five-fold cross-validation."""
    known_pairs = np.flatnonzero((known >= 0) & (table >= 0).any(1))
    answer = np.full(len(known), np.nan)
    for fold in range(min(5, len(known_pairs))):
        fold_pairs = known_pairs[fold::5]
        training_truth = known.copy()
        training_truth[fold_pairs] = -1
        answer[fold_pairs] = _points(_dawid_skene(table, training_truth).posterior)[fold_pairs]
    truth = POINTS[known[known_pairs]]
    anchored, by_majority = (float(credit(estimates[known_pairs], truth).mean()) for estimates in (answer, majority))
    return len(known_pairs), anchored, by_majority


POINTS = np.array([1.0, 0.0, 0.5])
"""Probability that the first is better, by class: first, second, tie."""


def credit(p_first: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 for the right side, 1/2 if exactly one of answer and truth is a tie, else 0."""
    return 1 - np.abs(np.sign(p_first - 0.5) - np.sign(truth - 0.5)) / 2


def _crowd_bt(table: np.ndarray, pairs: Sequence[Place]) -> tuple[np.ndarray, tuple[float, ...]]:
    """``[N]`` probabilities that the first is better, and the reliability of each annotator.

    Every response of an item is a separate player on each axis, so that reliabilities do not absorb differences between
    axes.
    """
    players: dict[tuple[int, int, str | None], int] = {}
    ends = [[players.setdefault((item, k, axis), len(players)) for k in (i, j)] for item, i, j, axis in pairs]
    first, second = np.array(ends).T
    pair, annotator = np.nonzero(table >= 0)
    outcome = POINTS[table[pair, annotator]]
    sizes = {"n_models": len(players), "n_annotators": table.shape[1], "ridge": CROWD_RIDGE}
    try:
        fit = annotators.crowd_bt(first[pair], second[pair], outcome, annotator, **sizes)
    except ValueError as error:
        raise AfzalError(
            "Crowd-BT gives no answer", where="--by crowd_bt", why=str(error), remedy="--by mean"
        ) from None
    return 1 / (1 + np.exp(fit.theta[second] - fit.theta[first])), tuple(fit.eta.tolist())


def _majority(table: np.ndarray) -> np.ndarray:
    """``[N]`` 1, 0 or 0.5; NaN without a label."""
    votes = counts(table, 3)
    top = votes.max(1)
    first, second, tie = (votes[:, c] == top for c in (FIRST, SECOND, TIE))
    value = np.where(first & ~second & ~tie, 1.0, np.where(second & ~first & ~tie, 0.0, 0.5))
    return np.where(top > 0, value, np.nan)


def _points(distribution: np.ndarray) -> np.ndarray:
    return distribution @ POINTS[: distribution.shape[1]]


def _unsupervised(table: np.ndarray) -> annotators.DawidSkene | None:
    """Dawid-Skene's fit; None if it did not converge, as with almost uninformative labels."""
    try:
        return _dawid_skene(table, np.full(len(table), -1))
    except ValueError:
        return None


def _dawid_skene(table: np.ndarray, gold: np.ndarray) -> annotators.DawidSkene:
    return annotators.dawid_skene(table, classes_of(table, gold), gold=gold)


def _require_fit(fit: annotators.DawidSkene | None) -> annotators.DawidSkene:
    if fit is None:
        raise AfzalError(
            "Dawid-Skene gives no answer",
            where="--by dawid_skene",
            why="it needs pairs that three annotators labelled, and labels informative enough to converge",
            remedy="--by mean",
        )
    return fit


def _answer(table: np.ndarray, known: np.ndarray, by: By) -> np.ndarray:
    if by == "majority":
        return _majority(table)
    if not _is_anchored(table, known):
        raise AfzalError(
            "no labelled pair has a known truth",
            where="--by gold",
            remedy="give rows of known truth with --gold FILE: the same prompts and responses",
        )
    return _points(annotators.log_odds_vote(table, known, classes_of(table, known)))


def _mean(labels: Labels, n_votes: np.ndarray, by: By) -> np.ndarray:
    """``[N]`` the mean of the probabilities that ``n_votes`` ``[N]`` votes state; for ``jeffreys`` with half a vote
    added for each response."""
    share = labels.means[0]
    return (n_votes * share + 0.5) / (n_votes + 1) if by == "jeffreys" else share


def _count_overturned(answer: np.ndarray, majority: np.ndarray) -> int:
    """The number of pairs decided by the majority on which the answer names the other response or a tie."""
    decided = np.isfinite(majority) & (majority != 0.5) & np.isfinite(answer)
    return int((np.sign(answer - 0.5) != np.sign(majority - 0.5))[decided].sum())


def _warnings(result: Aggregation, labels: Labels, by: By) -> list[str]:
    warnings = []
    known = int((labels.gold >= 0).sum())
    if result.doubtful:
        contradicts = (
            f"Dawid-Skene contradicts the majority on {result.dawid_skene_overturned} of {result.decided} pairs"
        )
        each = float(np.median((labels.table >= 0).sum(0)))
        if each < FEW:
            warnings.append(
                f"{contradicts}: with a median of {each:g} labels per annotator it cannot tell who errs. Use --by mean "
                "or majority."
            )
        else:
            advice = "The answer by gold items is the one to use." if by == "gold" else _advice(known)
            why = "the annotators share errors, so agreement does not show who is right"
            warnings.append(f"{contradicts}: {why}. {advice}")
    elif result.dawid_skene_overturned is not None:
        warnings.append(f"Dawid-Skene moves {result.dawid_skene_overturned} of {result.decided} decided pairs.")
    if by == "crowd_bt":
        warnings.append(f"Crowd-BT moves {result.overturned} of {result.decided} decided pairs.")
    if result.held_out is not None:
        n, anchored, majority = result.held_out
        warnings.append(
            f"Anchored by known truth, Dawid-Skene moves {result.overturned} of {result.decided} decided pairs. On "
            f"the {n} pairs of known truth, each fifth held out in turn, it is right on {anchored:.0%}, the "
            f"majority on {majority:.0%}."
        )
    if by == "gold" and known < 10:
        warnings.append(f"{known} pairs of known truth are few; ten or more make the weights stable.")
    return warnings


def _advice(known: int) -> str:
    return "Use --by gold." if known else "Establish the truth of ten pairs or more and use --by gold --gold FILE."


def fit_as_plain(fit: annotators.DawidSkene, labels: Labels) -> dict[str, Any]:
    """The estimates of Dawid and Skene's model for classes and annotators, with a table."""
    classes = CLASSES[: len(fit.prior)]
    people, rows = {}, []
    for name, confusion, accuracy in zip(labels.annotators, fit.confusion, fit.accuracy, strict=True):
        matrix = {
            c: dict(zip(classes, map(float, row), strict=True)) for c, row in zip(classes, confusion, strict=True)
        }
        people[name] = {"accuracy": float(accuracy), "confusion": matrix}
        rows.append([name, *(f"{matrix[c][c]:.1%}" for c in classes), f"{accuracy:.1%}"])
    words = "How often each annotator is right, by the model's own estimate, for each true class and overall."
    table = {
        "title": "Annotators by Dawid-Skene",
        "words": words,
        "columns": ["annotator", *classes, "all"],
        "rows": rows,
    }
    plain = {
        "prior": dict(zip(classes, map(float, fit.prior), strict=True)),
        "log_likelihood": fit.log_likelihood,
        "iterations": fit.iterations,
        "unsure": int((fit.posterior.max(1) < SURE).sum()),
        "annotators": people,
    }
    return {"dawid_skene": plain, "tables": [table]}


def as_items(
    items: Sequence[Item], labels: Labels, result: Aggregation, by: By, kind: LabelKind = "soft"
) -> list[Item]:
    """The rows with one vote per pair and axis in place of their comparisons and rankings.

    The vote states a probability, or is certain if all agree. A pair without an order has no vote. The weight is the
    mean of the votes' weights, as in training; if all are 0, as on a page's rows of known truth, the new one trains
    nothing either. Other kinds of votes stay as they are. If a judge's verdicts are among a row's votes, ``extra``
    names its new votes like the judge's own, so that they do not count as people's.

    Args:
        kind: ``soft`` states the probability p. ``weighted`` names the likelier response, with the weight times
            abs(2 p - 1): a doubtful pair counts little, instead of asking for a small margin, and a tie has no vote.
    """
    votes: dict[int, list[Comparison]] = {}
    counted = (labels.table >= 0).sum(1)
    columns = (labels.pairs, result.p_first.tolist(), counted.tolist(), labels.means[1].tolist())
    for (number, i, j, axis), p, n, weight in zip(*columns, strict=True):
        if p != p or (kind == "weighted" and p == 0.5):
            continue
        outcome = "first" if p > 0.5 else "second" if p < 0.5 else "tie"
        vote = Comparison(i, j, outcome, weight=weight, annotator=f"{by} of {n}", axis=axis)
        if kind == "weighted":
            vote = replace(vote, weight=weight * abs(2 * p - 1))
        elif p not in (0.0, 0.5, 1.0):
            vote = replace(vote, probability=p)
        votes.setdefault(number, []).append(vote)
    rows = []
    for number, item in enumerate(items):
        ratings = tuple(v for v in item.votes if isinstance(v, Rating))
        combined = votes.get(number, ())
        row = replace(item, votes=(*combined, *ratings))
        judges = judges_of(item)
        if combined and any(vote.annotator in judges for vote in item.votes if not isinstance(vote, Rating)):
            row = replace(row, extra=naming(item, [str(vote.annotator) for vote in combined]))
        rows.append(row)
    return rows
