"""Agreement between annotators and the habits of each: the report that precedes any aggregation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from afzal.judge.figures import finite, interval
from afzal.judge.labels import CLASSES, FIRST, SECOND, VALUES, Label, Labels
from afzal.stats import agreement, judging
from afzal.stats.intervals import Interval, clustered, share
from afzal.stats.resampling import sums

ENOUGH = 20  # labels needed to judge a person's habits
ONE_ANSWER = 0.95  # share of one label that is a pattern, if all others together give it less than half as often
HASTY = 1 / 3  # of the median seconds of all annotators


@dataclass(frozen=True, slots=True)
class AnnotatorPair:
    """Two annotators on the pairs that both labelled: the share of equal labels, the same among pairs on which both
    name a winner (None without any) and the number of those, and Cohen's kappa."""

    annotators: tuple[str, str]
    raw: float
    without_ties: float | None
    decided: int
    cohen: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Figures over all annotators, each with an interval over prompts; a coefficient corrected for chance has none if
    everybody agrees.

    ``raw`` is the share of equal labels among pairs of labels of one item, ``without_ties`` the same among labels that
    name a winner; ``alpha`` is Krippendorff's on classes, ``alpha_scale`` on the scale second, tie, first. ``fleiss``
    is None if items have different numbers of labels. ``pairs`` holds every two annotators with common pairs; it is
    empty for more than ten annotators.
    """

    raw: Interval
    without_ties: Interval | None
    alpha: Interval
    alpha_scale: Interval
    gwet: Interval
    fleiss: Interval | None
    pairs: tuple[AnnotatorPair, ...]


@dataclass(frozen=True, slots=True)
class AnnotatorReport:
    """One annotator.

    Attributes:
        labels: number of labels given; ``ties`` is the number of ties among them.
        with_rest: agreement with the mode of the others; None if nobody else labelled their items.
        right: accuracy on items of known truth; None without any.
        first_slot: share of their winners that was shown first; None if that is not recorded.
        first_slot_p: exact p-value of no preference for a slot, over prompts.
        consistent: share of repeated pairs with the same label again; None without repeats. ``repeats`` is their
            number.
        seconds: median; None if not recorded.
        remarks: oddities, in words.
    """

    name: str
    labels: int
    ties: int
    with_rest: Interval | None
    right: Interval | None
    first_slot: float | None
    first_slot_p: float | None
    consistent: float | None
    seconds: float | None
    remarks: tuple[str, ...]
    repeats: int = 0


def overall_agreement(labels: Labels, *, resamples: int = 1000, seed: int = 0) -> Agreement | None:
    """Agreement of all annotators; None if no pair was labelled by two of them."""
    table = agreement.counts(labels.table, len(CLASSES))
    if (table.sum(1) >= 2).sum() == 0:
        return None
    decided = np.where(labels.table <= SECOND, labels.table, -1)
    ordered = agreement.counts(np.where(labels.table < len(VALUES), labels.table, -1), len(VALUES))
    winners = agreement.counts(decided, 2)
    sizes = table.sum(1)[table.sum(1) >= 2]
    used_classes = table[:, table.sum(0) > 0]
    parts = [
        agreement.raw_sums(table),
        agreement.raw_sums(winners),
        agreement.alpha_sums(used_classes),
        agreement.alpha_sums(ordered),
        agreement.gwet_sums(used_classes),
    ]
    ends = np.cumsum([0, *(part.shape[1] for part in parts)])
    known = sums(np.concatenate(parts, 1), labels.prompts, resamples=resamples, seed=seed)

    def over(figure: Callable[[np.ndarray], np.ndarray], part: int) -> Interval:
        return known.interval(lambda s: figure(s[..., ends[part] : ends[part + 1]]))

    def corrected(figure: Callable[[np.ndarray], np.ndarray], part: int) -> Interval:
        interval = over(figure, part)
        # if everybody agrees, all resamples are 1, which says nothing about the width
        return replace(interval, low=None, high=None) if interval.low == interval.high == 1 else interval

    prompts, decided_twice = labels.prompts, (winners.sum(1) >= 2).any()
    return Agreement(
        raw=agreement.with_width(over(agreement.raw_of, 0), table, prompts),
        without_ties=agreement.with_width(over(agreement.raw_of, 1), winners, prompts) if decided_twice else None,
        alpha=corrected(agreement.alpha_of, 2),
        alpha_scale=corrected(lambda s: agreement.alpha_of(s, "interval", VALUES), 3),
        gwet=corrected(agreement.gwet_of, 4),
        fleiss=corrected(agreement.fleiss_of, 4) if (sizes == sizes[0]).all() else None,
        pairs=_pairs(labels),
    )


def _pairs(labels: Labels) -> tuple[AnnotatorPair, ...]:
    names, table = labels.annotators, labels.table
    annotator_pairs = []
    for a, b in combinations(range(len(names)), 2) if len(names) <= 10 else ():
        shared = (table[:, a] >= 0) & (table[:, b] >= 0)
        if shared.any():
            equal, decided = table[:, a] == table[:, b], shared & (table[:, (a, b)] <= SECOND).all(1)
            winners = float(equal[decided].mean()) if decided.any() else None
            kappa = agreement.cohen(table[:, a], table[:, b])
            annotator_pairs.append(
                AnnotatorPair((names[a], names[b]), float(equal[shared].mean()), winners, int(decided.sum()), kappa)
            )
    return tuple(annotator_pairs)


def annotator_reports(labels: Labels) -> list[AnnotatorReport]:
    """Every annotator compared with the others."""
    table = labels.table
    pairs, people = np.nonzero(table >= 0)
    with_others = agreement.credit_with_rest(table, len(CLASSES))
    right = np.where(labels.gold[pairs] >= 0, table[pairs, people] == labels.gold[pairs], np.nan)
    shares = [_shares(labels, values, (pairs, people)) for values in (with_others, right)]
    by_person: dict[int, list[Label]] = defaultdict(list)
    for s in labels.entries:
        by_person[s.annotator].append(s)
    totals = _totals(labels)
    persons = []
    for person, name in enumerate(labels.annotators):
        labels_given = by_person[person]
        known = [of_person.get(person) for of_person in shares]
        slot, p = _slot_preference(labels, labels_given)
        seconds = [s.seconds for s in labels_given if s.seconds is not None]
        figures: dict[str, Any] = {
            "with_rest": known[0],
            "right": known[1],
            "first_slot": slot,
            "first_slot_p": p,
            "seconds": float(np.median(seconds)) if seconds else None,
        }
        remarks = _remarks(labels, person, labels_given, totals, figures)
        ties = sum(CLASSES[s.label] == "tie" for s in labels_given)
        consistent, repeats = _repeat_consistency(labels_given)
        persons.append(
            AnnotatorReport(
                name, len(labels_given), ties, consistent=consistent, remarks=remarks, repeats=repeats, **figures
            )
        )
    return persons


def _shares(labels: Labels, values: np.ndarray, positions: tuple[np.ndarray, np.ndarray]) -> dict[int, Interval]:
    """The mean of each annotator's values ``[M]``: one from 0 to 1 per label, or NaN."""
    by_person: dict[int, tuple[list[str], list[float]]] = defaultdict(lambda: ([], []))
    for pair, person, value in zip(positions[0].tolist(), positions[1].tolist(), values.tolist(), strict=True):
        if value == value:
            by_person[person][0].append(labels.prompts[pair])
            by_person[person][1].append(value)
    return {person: share(clustered(*rows)) for person, rows in by_person.items()}


def _shown_first(labels: list[Label]) -> list[bool]:
    """For each winner in order, whether it was shown first; those without a record are skipped."""
    return [
        (s.label == FIRST) == s.first_shown_first
        for s in labels
        if s.first_shown_first is not None and s.label <= SECOND
    ]


def _slot_preference(labels: Labels, own_labels: list[Label]) -> tuple[float | None, float | None]:
    """The share of winners that were shown first, and the exact p-value of one half, over prompts."""
    won = [(is_first, labels.prompts[s.pair]) for s in own_labels for is_first in _shown_first([s])]
    if not won:
        return None, None
    shown_first, prompts = np.array([is_first for is_first, _ in won]), [prompt for _, prompt in won]
    return float(shown_first.mean()), judging.sign_p(np.where(shown_first, 1, -1), prompts)


def _repeat_consistency(labels: list[Label]) -> tuple[float | None, int]:
    """The share of repeatedly labelled pairs on which a person's labels are all the same, and the number of such
    pairs."""
    by_pair: dict[int, list[int]] = defaultdict(list)
    for s in labels:
        by_pair[s.pair].append(s.label)
    consistent = [len(set(values)) == 1 for values in by_pair.values() if len(values) > 1]
    return (sum(consistent) / len(consistent) if consistent else None), len(consistent)


def _count_alternations(labels: Labels, own_labels: list[Label]) -> tuple[int, int]:
    """How often the slot of consecutive winners changed, and in how many steps. Labels on one prompt are not
    independent, so only the first of each prompt counts."""
    slots: dict[str, bool] = {}
    for label in own_labels:
        for is_first in _shown_first([label]):
            slots.setdefault(labels.prompts[label.pair], is_first)
    return sum(a != b for a, b in pairwise(slots.values())), max(0, len(slots) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Totals:
    """All annotators together: ``[N, K]`` labels that count, ``[K]`` labels given, and median seconds if recorded."""

    label_counts: np.ndarray
    given_counts: np.ndarray
    median_seconds: float | None


def _totals(labels: Labels) -> _Totals:
    seconds = [s.seconds for s in labels.entries if s.seconds is not None]
    return _Totals(
        agreement.counts(labels.table, len(CLASSES)),
        _class_counts(labels.entries),
        float(np.median(seconds)) if seconds else None,
    )


def _class_counts(labels: Sequence[Label]) -> np.ndarray:
    return np.bincount([s.label for s in labels], minlength=len(CLASSES))


def _remarks(
    labels: Labels, person: int, own_labels: list[Label], totals: _Totals, figures: Mapping[str, Any]
) -> tuple[str, ...]:
    from scipy.stats import binomtest

    if len(own_labels) < ENOUGH:
        return ()
    remarks, n, pace = [], len(labels.annotators), totals.median_seconds
    own = labels.table[:, person]
    # compared with the class that the others chose, on pairs with a winner on both sides
    other_counts = totals.label_counts - (own[:, None] == np.arange(len(CLASSES)))
    clear = (
        (own >= 0)
        & (own <= SECOND)
        & (other_counts[:, FIRST] != other_counts[:, SECOND])
        & (other_counts[:, :2].sum(1) > 0)
    )
    if clear.any():
        agrees = (own == other_counts[:, :2].argmax(1))[clear]
        prompts = [p for p, c in zip(labels.prompts, clear, strict=True) if c]
        agreeing = share(clustered(prompts, agrees.astype(float)))
        if agreeing.high is not None and agreeing.high < 0.5:
            remarks.append(f"names the loser of the others on {1 - agreeing.value:.0%} of pairs: reversed?")
    p = figures["first_slot_p"]
    if p is not None and p < 0.01 / n:
        side = "first" if figures["first_slot"] > 0.5 else "second"
        remarks.append(f"prefers what is shown {side} ({figures['first_slot']:.0%} first, p = {p:.1g})")
    changes, steps = _count_alternations(labels, own_labels)
    if steps and changes > 0.5 * steps and binomtest(changes, steps).pvalue < 0.001 / n:
        remarks.append(f"changes the slot {changes} times in {steps} steps: left, right, left, right?")
    own_counts = _class_counts(own_labels)
    other_totals = totals.given_counts - own_counts
    shares, other_shares = own_counts / len(own_labels), other_totals / max(1, other_totals.sum())
    top = int(shares.argmax())
    only_annotator = not other_totals.any()  # then a constant 'first' is the format of the rows and not a habit
    if shares[top] >= ONE_ANSWER and (top > SECOND if only_annotator else other_shares[top] < shares[top] / 2):
        contrast = "" if only_annotator else f", the others {other_shares[top]:.0%}"
        remarks.append(f"says {CLASSES[top]!r} {shares[top]:.0%} of the time{contrast}")
    if figures["seconds"] is not None and pace and figures["seconds"] < HASTY * pace:
        remarks.append(f"takes {figures['seconds']:.1f} s; the median of all is {pace:.1f} s")
    return tuple(remarks)


def as_plain(
    labels: Labels, overall: Agreement | None, people: Sequence[AnnotatorReport], source: str
) -> dict[str, Any]:
    """The report as plain values, for the page and for files."""
    oddities = [f"{person.name}: {remark}" for person in people for remark in person.remarks]
    similar_names = _similar_names(labels.annotators)
    lines = [_line(person) for person in people]
    figures: list[dict[str, Any]] = []
    unknown = {"low": None, "high": None}
    if overall is not None:
        by_name = {
            "raw agreement": overall.raw,
            "without ties": overall.without_ties,
            "Krippendorff's alpha": overall.alpha,
            "alpha on the scale second, tie, first": overall.alpha_scale,
            "Fleiss' kappa": overall.fleiss,
            "Gwet's AC1": overall.gwet,
        }
        figures = [{"name": name, **interval(figure)} for name, figure in by_name.items() if figure is not None]
        figures += [
            {"name": f"Cohen's kappa, {' and '.join(pair.annotators)}", "value": finite(pair.cohen), **unknown}
            for pair in overall.pairs
        ]
    counts = agreement.counts(labels.table, len(CLASSES))
    several = counts[counts.sum(1) >= 2]
    unanimous = int((several.max(1) == several.sum(1)).sum())
    with_majority = int((2 * several.max(1) > several.sum(1)).sum())
    facts = [
        ("annotators", f"{len(labels.annotators):,}"),
        ("labels", f"{len(labels.entries):,}"),
        ("pairs", f"{len(labels.pairs):,}"),
        ("pairs with two labels or more", f"{len(several):,}"),
        ("of them unanimous", f"{unanimous:,}"),
        ("with a majority", f"{with_majority - unanimous:,}"),
        ("without one", f"{len(several) - with_majority:,}"),
        ("groups of prompts", f"{len(set(labels.prompts)):,}"),
        ("pairs of known truth", f"{int((labels.gold >= 0).sum()):,}"),
    ]
    findings = [] if overall is None else [f"Two labels of one pair agree with probability {overall.raw.value:.3f}."]
    findings = findings or ["No pair has two labels, so nothing is known about agreement."]
    header = {"title": "Annotators", "subtitle": source, "unit": "agreement with the others", "rule": None}
    body = {
        **header,
        "findings": [*findings, *oddities, *similar_names],
        "remarks": {person.name: list(person.remarks) for person in people if person.remarks},
        "similar_names": similar_names,
        "facts": facts,
        "lines": lines,
        "figures": figures,
        "differences": [],
    }
    pairs = () if overall is None else overall.pairs
    body["labels"] = {name: {} for name in labels.annotators}
    for s in labels.entries:
        tally = body["labels"][labels.annotators[s.annotator]]
        tally[CLASSES[s.label]] = tally.get(CLASSES[s.label], 0) + 1
    return body | {"pairs_of_annotators": [{key: finite(v) for key, v in asdict(pair).items()} for pair in pairs]}


def _similar_names(names: Sequence[str]) -> list[str]:
    """A finding for names that differ only in case or spaces."""
    by_spelling = defaultdict(list)
    for name in names:
        by_spelling[" ".join(name.casefold().split())].append(name)
    return [
        f"{' and '.join(variants)} are counted as {len(variants)} annotators because their names differ: one person, "
        f"spelled {len(variants)} ways?"
        for variants in by_spelling.values()
        if len(variants) > 1
    ]


def _line(person: AnnotatorReport) -> dict[str, Any]:
    unknown = {"value": None, "low": None, "high": None}
    return {
        "name": person.name,
        **(unknown if person.with_rest is None else interval(person.with_rest)),
        "labels": person.labels,
        "ties": person.ties,
        "right": None if person.right is None else person.right.value,
        "right_low": None if person.right is None else finite(person.right.low),
        "right_high": None if person.right is None else finite(person.right.high),
        "first_slot": person.first_slot,
        "first_slot_p": person.first_slot_p,
        "consistent": person.consistent,
        "repeats": person.repeats or None,
        "seconds": person.seconds,
    }
