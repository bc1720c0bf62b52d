"""From the labels of several annotators to one preference per pair, and when not to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.labels import BOTH_BAD, CLASSES, FIRST, SECOND, TIE, Labels, Place
from afzal.records import Comparison, Item, Rating, comparisons
from afzal.stats import annotators
from afzal.stats.agreement import counts

By = Literal["mean", "jeffreys", "majority", "dawid_skene", "crowd_bt", "gold"]
LabelKind = Literal["soft", "weighted"]
UNSUPERVISED = ("dawid_skene", "crowd_bt")
CROWD_RIDGE = 0.1  # of strengths in nats: a pair's difference has a prior with standard deviation 3.2
HELD_OUT = 20  # pairs of known truth from which an anchored answer may be believed against the majority
SURE = 0.9  # posterior of the likeliest class below which a pair is counted as unsure
PARTS_AT = 0.05  # share of decided pairs on which Dawid-Skene may differ from the majority before it is not believed


@dataclass(frozen=True, slots=True, eq=False)
class Aggregated:
    """One answer per pair.

    Attributes:
        p_first: ``[N]`` probability that the first response is better (a tie is half); NaN where nothing orders them:
            no label, or most said that both are bad.
        moved: pairs on which the answer names another winner than the majority does, of those that it decides.
        decided: pairs that the majority decides.
        dawid_skene_moved: the same for Dawid-Skene without known truth, whatever was asked for; None with fewer than
            three annotators.
        warnings: why the answer may be wrong, in words.
        eta: of each annotator, how often they say what they see (Crowd-BT alone): 1/2 is a coin, below it reversed.
        checked: pairs of known truth, and on how many of them, held out, the anchored answer and the majority are right
            (Dawid-Skene with known truth alone).
        fit: what Dawid and Skene's model found (``dawid_skene`` alone).
    """

    p_first: np.ndarray
    moved: int
    decided: int
    dawid_skene_moved: int | None
    warnings: tuple[str, ...]
    eta: tuple[float, ...] | None = None
    checked: tuple[int, float, float] | None = None
    fit: annotators.DawidSkene | None = None

    def soft_share(self) -> float:
        """The share of pairs with an answer whose answer is not certain: a tie, or a split."""
        known = self.p_first[np.isfinite(self.p_first)]
        return float(((known > 0) & (known < 1)).mean()) if len(known) else 0.0

    def histogram(self) -> dict[str, int]:
        """How many pairs have each label, the probability of the first answer to four digits, in order."""
        values, counts = np.unique(self.p_first[np.isfinite(self.p_first)].round(4), return_counts=True)
        return {f"{value:.4f}": int(count) for value, count in zip(values, counts, strict=True)}

    def right(self, gold: np.ndarray) -> float | None:
        """How often the answer names the true winner ``[N]``, a tie or no answer counting half; None without truths."""
        at = np.flatnonzero(ordering(gold) >= 0)
        said = np.nan_to_num(self.p_first, nan=0.5)[at]
        return float(credit(said, POINTS[gold[at]]).mean()) if len(at) else None

    @property
    def doubtful(self) -> bool:
        """Whether the annotators part so far that an unsupervised answer is not to be believed."""
        return self.dawid_skene_moved is not None and self.dawid_skene_moved > PARTS_AT * max(1, self.decided)

    @property
    def refused(self) -> bool:
        """Whether the answer asked for contradicts the majority on more pairs than may be believed.

        Of supervised answers, only one that held-out pairs of known truth speak for is believed against the majority.
        """
        if self.moved <= PARTS_AT * max(1, self.decided):
            return False
        n, anchored, majority = self.checked or (0, 0.0, 0.0)
        return not (n >= HELD_OUT and anchored > majority)


def aggregate(labels: Labels, by: By = "mean", *, anchored: bool = True) -> Aggregated:
    """Aggregate the labels that order a pair (first, second, tie).

    Args:
        anchored: whether Dawid-Skene may know the pairs of known truth; verdict files have them to measure judges by.
        by: ``mean``, the share of the votes (a soft label); ``jeffreys``, the same with half a vote for each response
            beside them, so that few votes are never certain (the mean under Jeffreys' prior); ``majority``, the most
            frequent label, an even split being a tie; ``dawid_skene``, weights by a confusion matrix of each annotator,
            unsupervised, or anchored by the pairs of known truth where there are any; ``crowd_bt``, Bradley-Terry
            strengths of the responses with a reliability of each annotator; ``gold``, weights by what each annotator is
            worth on the pairs of known truth.

    Raises:
        AfzalError: ``gold`` without a labelled pair of known truth.
    """
    table = without_bad(labels.table)
    bad = counts(labels.table, len(CLASSES))[:, BOTH_BAD]
    heard = (table >= 0).sum(1)
    majority = _majority(table)
    unsupervised = _at_rest(table) if table.shape[1] >= 3 and heard.max(initial=0) >= 3 else None
    eta = checked = fit = None
    known = ordering(labels.gold)
    if by == "crowd_bt":
        answer, eta = _crowd_bt(table, labels.pairs)
    elif by == "dawid_skene":
        fit = _sure_of(unsupervised)
        if anchored and _is_anchored(table, known):
            fit, checked = _dawid_skene(table, known), _held_out(table, known, majority)
        answer = _points(fit.posterior)
    else:
        answer = _answer(table, known, by)
    answer = np.where((heard > 0) & (bad <= heard), answer, np.nan)
    decided = int((np.isfinite(majority) & (majority != 0.5)).sum())
    ds_moved = None if unsupervised is None else _moved(_points(unsupervised.posterior), majority)
    found = Aggregated(answer, _moved(answer, majority), decided, ds_moved, (), eta, checked, fit)
    return replace(found, warnings=tuple(_warnings(found, labels, by)))


def without_bad(table: np.ndarray) -> np.ndarray:
    """Labels that order a pair; -1 for "both are bad", as for no label."""
    return np.where(table == BOTH_BAD, -1, table)


def ordering(gold: np.ndarray) -> np.ndarray:
    """Truths that order a pair; -1 for others."""
    return np.where((gold >= 0) & (gold < 3), gold, -1)


def classes_of(table: np.ndarray, gold: np.ndarray) -> int:
    """How many classes there are: first and second, and tie where a label or a truth says so."""
    return 3 if (table == TIE).any() or (gold == TIE).any() else 2


def _is_anchored(table: np.ndarray, known: np.ndarray) -> bool:
    return bool(((known >= 0)[:, None] & (table >= 0)).any())


def _held_out(table: np.ndarray, known: np.ndarray, majority: np.ndarray) -> tuple[int, float, float]:
    """(pairs, share right by Dawid-Skene, share right by the majority), each fifth of the truths held out in turn."""
    at = np.flatnonzero((known >= 0) & (table >= 0).any(1))
    answer = np.full(len(known), np.nan)
    for fold in range(min(5, len(at))):
        held = at[fold::5]
        kept = known.copy()
        kept[held] = -1
        answer[held] = _points(_dawid_skene(table, kept).posterior)[held]
    truth = POINTS[known[at]]
    anchored, voted = (float(credit(said[at], truth).mean()) for said in (answer, majority))
    return len(at), anchored, voted


POINTS = np.array([1.0, 0.0, 0.5])
"""Probability that the first is better, by class: first, second, tie."""


def credit(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 for the right side, 1/2 for a tie where one side is right or the other way round, else 0."""
    return 1 - np.abs(np.sign(said - 0.5) - np.sign(truth - 0.5)) / 2


def _crowd_bt(table: np.ndarray, pairs: Sequence[Place]) -> tuple[np.ndarray, tuple[float, ...]]:
    """``[N]`` probabilities that the first is better, and the reliability of each annotator.

    The players are the responses of each item on each axis, so that a reliability does not take up what differs between
    them.
    """
    players: dict[tuple[int, int, str | None], int] = {}
    ends = [[players.setdefault((item, k, axis), len(players)) for k in (i, j)] for item, i, j, axis in pairs]
    first, second = np.array(ends).T
    pair, who = np.nonzero(table >= 0)
    outcome = POINTS[table[pair, who]]
    sizes = {"n_models": len(players), "n_annotators": table.shape[1], "ridge": CROWD_RIDGE}
    try:
        fit = annotators.crowd_bt(first[pair], second[pair], outcome, who, **sizes)
    except ValueError as error:
        raise AfzalError(
            "Crowd-BT gives no answer", where="--by crowd_bt", why=str(error), remedy="--by mean"
        ) from None
    return 1 / (1 + np.exp(fit.theta[second] - fit.theta[first])), tuple(fit.eta.tolist())


def _majority(table: np.ndarray) -> np.ndarray:
    """``[N]`` 1, 0 or 0.5; NaN without a label."""
    said = counts(table, 3)
    top = said.max(1)
    first, second, tie = (said[:, c] == top for c in (FIRST, SECOND, TIE))
    value = np.where(first & ~second & ~tie, 1.0, np.where(second & ~first & ~tie, 0.0, 0.5))
    return np.where(top > 0, value, np.nan)


def _points(distribution: np.ndarray) -> np.ndarray:
    return distribution @ POINTS[: distribution.shape[1]]


def _at_rest(table: np.ndarray) -> annotators.DawidSkene | None:
    """Dawid-Skene's answer; None where it did not converge, as with labels that say next to nothing."""
    try:
        return _dawid_skene(table, np.full(len(table), -1))
    except ValueError:
        return None


def _dawid_skene(table: np.ndarray, gold: np.ndarray) -> annotators.DawidSkene:
    return annotators.dawid_skene(table, classes_of(table, gold), gold=gold)


def _sure_of(fit: annotators.DawidSkene | None) -> annotators.DawidSkene:
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
    if by == "gold":
        if not _is_anchored(table, known):
            raise AfzalError(
                "no labelled pair has a known truth",
                where="--by gold",
                remedy="give rows of known truth with --gold FILE: the same prompts and responses",
            )
        return _points(annotators.log_odds_vote(table, known, classes_of(table, known)))
    shares = _points(annotators.vote_shares(table, 3))
    n = (table >= 0).sum(1)
    return (n * shares + 0.5) / (n + 1) if by == "jeffreys" else shares


def _moved(answer: np.ndarray, majority: np.ndarray) -> int:
    """Pairs decided by the majority on which the answer names the other response, or none."""
    decided = np.isfinite(majority) & (majority != 0.5) & np.isfinite(answer)
    return int((np.sign(answer - 0.5) != np.sign(majority - 0.5))[decided].sum())


def _warnings(found: Aggregated, labels: Labels, by: By) -> list[str]:
    said = []
    known = int((labels.gold >= 0).sum())
    if found.doubtful:
        said.append(
            f"Dawid-Skene names another winner than the majority on {found.dawid_skene_moved} of {found.decided} "
            "pairs: the annotators share errors, so agreement does not show who is right. "
            + ("The answer by gold items is the one to use." if by == "gold" else _mend(known))
        )
    elif found.dawid_skene_moved is not None:
        said.append(f"Dawid-Skene moves {found.dawid_skene_moved} of {found.decided} decided pairs.")
    if by == "crowd_bt":
        said.append(f"Crowd-BT moves {found.moved} of {found.decided} decided pairs.")
    if found.checked is not None:
        n, anchored, majority = found.checked
        said.append(
            f"Anchored by known truth, Dawid-Skene moves {found.moved} of {found.decided} decided pairs. On the {n} "
            f"pairs of known truth, each fifth held out in turn, it is right on {anchored:.0%}, the majority on "
            f"{majority:.0%}."
        )
    if by == "gold" and known < 10:
        said.append(f"{known} pairs of known truth are few; ten or more make the weights steady.")
    return said


def _mend(known: int) -> str:
    return "Use --by gold." if known else "Establish the truth of ten pairs or more and use --by gold --gold FILE."


def fit_as_plain(fit: annotators.DawidSkene, labels: Labels) -> dict[str, Any]:
    """What Dawid and Skene's model thinks of classes and annotators, with a table."""
    classes = CLASSES[: len(fit.prior)]
    people, rows = {}, []
    for name, confusion, accuracy in zip(labels.annotators, fit.confusion, fit.accuracy, strict=True):
        told = {c: dict(zip(classes, map(float, row), strict=True)) for c, row in zip(classes, confusion, strict=True)}
        people[name] = {"accuracy": float(accuracy), "confusion": told}
        rows.append([name, *(f"{told[c][c]:.1%}" for c in classes), f"{accuracy:.1%}"])
    words = "How often each says what is true, by the model's own estimate, for each truth and over all."
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


def as_items(items: Sequence[Item], labels: Labels, found: Aggregated, by: By, kind: LabelKind = "soft") -> list[Item]:
    """The rows with one vote per pair and axis in place of their comparisons and rankings.

    It is a stated probability, or certain where all agree. A pair that nothing orders has no vote. One whose votes all
    have weight 0, as those on a page's rows of known truth, has a vote of weight 0, which trains nothing either. Other
    kinds of votes stay as they are.

    Args:
        kind: ``soft`` states the probability p. ``weighted`` names the likelier response with weight abs(2 p - 1), so
            that a doubtful pair counts little instead of asking for a small margin; a tie has no vote.
    """
    votes: dict[int, list[Comparison]] = {}
    weighed = {
        (number, *sorted((v.first, v.second)), v.axis)
        for number, item in enumerate(items)
        for v in comparisons(item.votes)
        if v.weight > 0
    }
    counted = (labels.table >= 0).sum(1)
    for (number, i, j, axis), p, n in zip(labels.pairs, found.p_first.tolist(), counted.tolist(), strict=True):
        if p != p or (kind == "weighted" and p == 0.5):
            continue
        outcome = "first" if p > 0.5 else "second" if p < 0.5 else "tie"
        vote = Comparison(i, j, outcome, annotator=f"{by} of {n}", axis=axis)
        if kind == "weighted":
            vote = replace(vote, weight=abs(2 * p - 1))
        elif p not in (0.0, 0.5, 1.0):
            vote = replace(vote, probability=p)
        votes.setdefault(number, []).append(vote if (number, i, j, axis) in weighed else replace(vote, weight=0.0))
    kept = []
    for number, item in enumerate(items):
        others = tuple(v for v in item.votes if isinstance(v, Rating))
        kept.append(replace(item, votes=(*votes.get(number, ()), *others)))
    return kept
