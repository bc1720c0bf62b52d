"""A data set with what many findings ask of it, worked out once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from afzal.data import Dataset
from afzal.data.turns import answer_text, full_text, stripped
from afzal.records import Item, Preference, Rating, labels, preferences, prompt_key

Edges = dict[tuple[object, object], list[Item]]
"""(better, worse) answers and the items that say so."""


@dataclass(frozen=True, slots=True)
class Told:
    """One item and what it says.

    Attributes:
        asked: the words of the prompt as they stand.
        prompt, answers: what was said, without white space at the ends; one answer per response.
        lengths: characters of each answer as it stands.
        pairs: the preferences derived from its votes, the better first.
        labels: per response good, bad or None; () where single responses are not called good or bad.
    """

    item: Item
    asked: str
    prompt: object
    answers: tuple[object, ...]
    lengths: tuple[int, ...]
    pairs: tuple[Preference, ...]
    labels: tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A data set as findings look at it.

    Attributes:
        told: its items.
        pairs: every pair with its item.
        askings: how many items ask each prompt.
        groups: how many items stand in each group that must not be split.
        edges: per prompt, who beats whom.
    """

    dataset: Dataset
    told: list[Told]
    pairs: list[tuple[Told, Preference]]
    askings: Counter[object]
    groups: Counter[str]
    edges: dict[object, Edges]

    @property
    def items(self) -> list[Item]:
        return self.dataset.items


def look(dataset: Dataset) -> View:
    """What there is to know about a data set before anything is looked for in it."""
    told = [tell(item) for item in dataset.items]
    pairs = [(t, pair) for t in told for pair in t.pairs]
    askings, groups = Counter([t.prompt for t in told]), Counter(map(prompt_key, dataset.items))
    return View(dataset, told, pairs, askings, groups, edges_of(told))


def tell(item: Item) -> Told:
    """One item and what it says."""
    turns = [response.turns for response in item.responses]
    answers = tuple([stripped(t) for t in turns])
    lengths = tuple([len(answer_text(t)) for t in turns])
    stated = labels(item) if is_labelled(item) else ()
    return Told(item, full_text(item.prompt), stripped(item.prompt), answers, lengths, preferences(item), stated)


def is_labelled(item: Item) -> bool:
    """Whether single responses are called good or bad."""
    return any(isinstance(vote, Rating) and vote.kind == "label" for vote in item.votes)


def edges_of(told: Iterable[Told]) -> dict[object, Edges]:
    """Per prompt, which answer is preferred to which; ties, labels and equal answers order nothing."""
    by_prompt: dict[object, Edges] = {}
    for t in told:
        if t.labels:
            continue
        for pair in t.pairs:
            better, worse = t.answers[pair.i], t.answers[pair.j]
            if pair.p != 0.5 and better != worse:
                by_prompt.setdefault(t.prompt, {}).setdefault((better, worse), []).append(t.item)
    return by_prompt
