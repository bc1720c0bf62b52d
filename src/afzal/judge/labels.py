"""Labels of several annotators on the same pairs as one table, from rows with votes or from verdict files.

Shapes: N pairs, R annotators. Classes are :data:`CLASSES`; -1 is no label.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeAlias

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.games import category_of
from afzal.judge.verdicts import MIRRORED, Outcome, Verdicts, outcome_of
from afzal.records import Comparison, Item, Vote, comparisons, prompt_key, turns_to_json
from afzal.stats.agreement import MISSING

CLASSES: tuple[Outcome, ...] = ("first", "second", "tie", "both_bad")
FIRST, SECOND, TIE, BOTH_BAD = range(4)
_BY_LABEL = (1.0, 0.0, 0.5, np.nan)
VALUES = (1.0, -1.0, 0.0)
"""The values of first, second and tie on the scale from the second to the first."""
Place: TypeAlias = tuple[int, int, int, str | None]
"""Item number, two response numbers (the smaller first), and the axis."""


@dataclass(frozen=True, slots=True)
class Label:
    """One label: pair and annotator (numbers), class, whether the pair's first was shown first (None if not recorded),
    the seconds it took, whether the person had answered the same question before (asked again to test
    consistency), the probability that the pair's first is better (None if it is not stated), and the vote's weight."""

    pair: int
    annotator: int
    label: int
    first_shown_first: bool | None = None
    seconds: float | None = None
    is_repeat: bool = False
    p_first: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Labels:
    """Labels of pairs.

    Attributes:
        pairs: the place of each, (number, 0, 1, None) for verdicts. Opinions on different axes answer different
            questions: two responses compared on two axes are two pairs.
        prompts: of each pair, by :func:`afzal.records.prompt_key`; labels on one prompt are not independent.
        annotators: names.
        entries: all labels in the order given. A person's last label on a pair counts, repeats excepted; labels that
            differ between the two orders of a pair do not count.
        gold: ``[N]`` the true class if known, else -1.
        categories: of each pair, "" if the rows name none; an empty tuple if not requested.
    """

    pairs: tuple[Place, ...]
    prompts: tuple[str, ...]
    annotators: tuple[str, ...]
    entries: tuple[Label, ...]
    gold: np.ndarray
    categories: tuple[str, ...] = ()

    @cached_property
    def counted(self) -> dict[tuple[int, int], tuple[Label, ...]]:
        """The labels that count, by pair and annotator: the last one, or the last one in either order of the pair; none
        if those differ."""
        last: dict[tuple[int, int], dict[bool | None, Label]] = {}
        for s in self.entries:
            if s.is_repeat:
                continue
            in_order = last.setdefault((s.pair, s.annotator), {})
            if s.first_shown_first is None:
                in_order.clear()
            else:
                in_order.pop(None, None)
            in_order[s.first_shown_first] = s
        return {at: tuple(of.values()) for at, of in last.items() if len({s.label for s in of.values()}) == 1}

    @cached_property
    def table(self) -> np.ndarray:
        """``[N, R]`` the label that counts; -1 if an annotator's labels differ between the two orders of a pair."""
        table = np.full((len(self.pairs), len(self.annotators)), MISSING, np.int8)
        for at, labels in self.counted.items():
            table[at] = labels[0].label
        return table

    @cached_property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """``[N]`` the weighted mean of the probabilities that the first is better, as stated or by the label that
        counts, and ``[N]`` the mean weight, as in training (:func:`afzal.records.preferences`).

        Labels of weight 0 count only where there are no others; the mean weight is then 0. NaN without a label that
        orders the pair. A label in both orders counts with the means of the two.
        """
        sums = np.zeros((3, len(self.pairs)))  # weighted probabilities, weights, and number of labels
        plain = np.zeros((2, len(self.pairs)))  # probabilities and number of labels of weight 0
        for (pair, _), labels in self.counted.items():
            stated = [_BY_LABEL[s.label] if s.p_first is None else s.p_first for s in labels]
            p, weight = sum(stated) / len(stated), sum(s.weight for s in labels) / len(labels)
            if p == p and weight > 0:
                sums[:, pair] += (weight * p, weight, 1)
            elif p == p:
                plain[:, pair] += (p, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            weighted, unweighted = sums[0] / sums[1], plain[0] / plain[1]
        return np.where(sums[2] > 0, weighted, unweighted), sums[1] / np.maximum(sums[2], 1)


def of_items(items: Sequence[Item], gold: Iterable[Item] = ()) -> Labels:
    """The comparisons of rows, including those implied by rankings.

    Comparisons without a name belong to an annotator called ``votes``.

    Args:
        gold: rows with the same prompts and responses whose preferences are known to be true, in addition to rows that
            state their truth (``Item.gold``).

    Raises:
        AfzalError: there is no comparison.
    """
    with_gold = (item for item in items if item.gold)
    truth: dict[tuple[str, str, str], dict[str | None, int]] = defaultdict(dict)
    for item in chain(with_gold, gold):
        for key, axis, label in _truths(item):
            truth[key][axis] = label
    pairs: dict[Place, int] = {}
    people: dict[str, int] = {}
    prompts, known, labels, categories = [], [], [], []
    seen: set[tuple[int, int]] = set()
    keys = [prompt_key(item) for item in items]
    for number, item in enumerate(items):
        prompt = json.dumps(turns_to_json(item.prompt), ensure_ascii=False)
        answers = [json.dumps(turns_to_json(r.turns), ensure_ascii=False) for r in item.responses]
        for vote, seconds in _timed(item.votes):
            low, high = sorted((vote.first, vote.second))
            place = (number, low, high, vote.axis)
            if place not in pairs:
                pairs[place] = len(pairs)
                prompts.append(keys[number])
                categories.append(category_of(item) or "")
                known.append(_true(truth.get((prompt, answers[low], answers[high]), {}), vote.axis))
            vote = vote if vote.first == low else vote.swap()
            shown_first = None if vote.shown_first is None else vote.shown_first == low
            person = people.setdefault(vote.annotator or "votes", len(people))
            is_repeat = vote.weight == 0 and (pairs[place], person) in seen
            seen.add((pairs[place], person))
            labels.append(
                Label(
                    pairs[place], person, _label(vote), shown_first, seconds, is_repeat, vote.probability, vote.weight
                )
            )
    if not labels:
        raise AfzalError(
            "there are no comparisons to aggregate",
            why="votes on pairs of responses are needed",
            remedy="afzal check shows what was read",
        )
    return Labels(tuple(pairs), tuple(prompts), tuple(people), tuple(labels), np.array(known), tuple(categories))


def _timed(votes: Iterable[Vote]) -> Iterator[tuple[Comparison, float | None]]:
    """Every opinion on two responses with its seconds; a ranking's seconds belong to the first of its pairs."""
    for vote in votes:
        for n, pair in enumerate(comparisons([vote])):
            yield pair, vote.seconds if n == 0 else None


def _label(vote: Comparison) -> int:
    return CLASSES.index(outcome_of(vote))


def _truths(item: Item) -> Iterable[tuple[tuple[str, str, str], str | None, int]]:
    """Each pair of a gold row in both orders, with axis and true class."""
    prompt = json.dumps(turns_to_json(item.prompt), ensure_ascii=False)
    answers = [json.dumps(turns_to_json(r.turns), ensure_ascii=False) for r in item.responses]
    for vote in comparisons(item.gold or item.votes):
        for v in (vote, vote.swap()):
            yield (prompt, answers[v.first], answers[v.second]), v.axis, _label(v)


def _true(known: Mapping[str | None, int], axis: str | None) -> int:
    """The true class of a pair on an axis. A truth without an axis holds on all axes; votes without one accept any
    truth."""
    return known.get(axis, known.get(None, MISSING if axis is not None else next(iter(known.values()), MISSING)))


def of_verdicts(verdicts: Verdicts) -> Labels:
    """Judges as annotators: a judge's label on a pair counts if all of its games have the same outcome."""
    games: dict[tuple[str, str], list[tuple[Outcome, float | None]]] = defaultdict(list)
    names: dict[str, tuple[str, str, str]] = {}
    for v in verdicts.verdicts:
        names.setdefault(v.item, (v.prompt, v.first, v.category))
        if v.first != names[v.item][1]:
            p = None if v.probability is None else 1 - v.probability
            games[v.item, v.judge].append((MIRRORED[v.outcome], p))
        else:
            games[v.item, v.judge].append((v.outcome, v.probability))
    items = {item: k for k, item in enumerate(names)}
    judges = {judge: k for k, judge in enumerate(dict.fromkeys(judge for _, judge in games))}
    labels = []
    for (item, judge), played in games.items():
        outcome, stated = played[0][0], [p for _, p in played if p is not None]
        if outcome != "none" and all(other == outcome for other, _ in played):
            p = sum(stated) / len(stated) if len(stated) == len(played) else None
            labels.append(Label(items[item], judges[judge], CLASSES.index(outcome), p_first=p))
    truth = [CLASSES.index(verdicts.gold[item]) if item in verdicts.gold else MISSING for item in items]
    pairs = tuple((k, 0, 1, None) for k in range(len(items)))
    prompts, _, categories = zip(*names.values(), strict=True) if names else ((), (), ())
    return Labels(pairs, tuple(prompts), tuple(judges), tuple(labels), np.array(truth), tuple(categories))
