"""Checks across items: duplicates, contradictions, cycles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from afzal.data.dataset import Losses
from afzal.quality.clean import duplicate_key
from afzal.quality.columns import Column, distinct, extend, repeated
from afzal.quality.finding import CLEANED, Finding, Severity, add_nothing, finding
from afzal.quality.item_facts import ItemFacts, ItemTable, read_item
from afzal.quality.thresholds import MANY_DUPLICATES
from afzal.records import SWAPPED, Comparison, Item, template_fields


class DuplicateItems:
    """Items with the same prompt, answers and votes as an earlier one."""

    def __init__(self) -> None:
        self._keys = Column("q")

    def add(self, batch: Sequence[ItemFacts]) -> None:
        self._keys.extend([_key(facts) for facts in batch])

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        hit = sorted(place for places in repeated(self._keys) for place in places[1:])
        severity: Severity = "major" if len(hit) > MANY_DUPLICATES * table.items else "minor" if hit else "ok"
        message = f"{len(hit)} of {table.items} items repeat an earlier one exactly"
        return finding("duplicate_items", severity, len(hit), table.items, message, CLEANED, table.ids.first(hit))


class DuplicateIds:
    """Different items with the same id, which makes later lists of ids ambiguous."""

    def __init__(self) -> None:
        self._ids = Column("q")

    def add(self, batch: Sequence[ItemFacts]) -> None:
        self._ids.extend([hash(facts.item.id) for facts in batch])

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        hit = sorted(places[0] for places in repeated(self._ids))
        if not hit:
            return None
        names, message = table.ids.first(hit), f"{len(hit)} ids name more than one item"
        total = distinct(self._ids)
        return finding("duplicate_ids", "minor", len(hit), total, message, "give every row its own id", names)


class Edges:
    """The decided pairs of two different answers, in columns."""

    def __init__(self) -> None:
        self._items, self._prompts = Column("I"), Column("q")
        self._better, self._worse, self._pairs = Column("q"), Column("q"), Column("q")
        self._upright = bytearray()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        rows: list[tuple[int, int, int, int, int, bool]] = []
        for facts in batch:
            for pair in () if facts.labels else facts.pairs:
                better, worse = facts.answers[pair.i], facts.answers[pair.j]
                if pair.p == 0.5 or better == worse:
                    continue
                key, a, b = facts.prompt_key, hash(better), hash(worse)
                rows.append(
                    (facts.index, key, a, b, hash((key, a, b)), True)
                    if a < b
                    else (facts.index, key, a, b, hash((key, b, a)), False)
                )
        extend((self._items, self._prompts, self._better, self._worse, self._pairs, self._upright), rows)

    def both_ways(self) -> list[list[int]]:
        """The numbers of the items that order the same two answers both ways, one group per pair of answers."""
        groups: list[tuple[int, list[int]]] = []
        for places in repeated(self._pairs):
            upright = self._upright[places[0]]
            same = [place for place in places if self._upright[place] == upright]
            opposite = [place for place in places if self._upright[place] != upright]
            if opposite:
                groups.append((same[0], [self._items[place] for place in (*same, *opposite)]))
        return [items for _, items in sorted(groups)]

    def circles(self) -> tuple[int, list[list[int]]]:
        """(number of prompts with three or more orders, the item numbers of each prompt whose orders form a cycle)."""
        long, circles, columns = 0, [], None
        for places in repeated(self._prompts):
            if len(places) < 3:
                continue
            better, worse, items = columns = columns or [c.read() for c in (self._better, self._worse, self._items)]
            edges: dict[tuple[int, int], list[int]] = {}
            for place in places:
                edges.setdefault((better[place], worse[place]), []).append(items[place])
            long += len(edges) > 2
            if len(edges) > 2 and _has_cycle(edges):
                circles.append((places[0], [item for items in edges.values() for item in items]))
        return long, [items for _, items in sorted(circles)]

    @property
    def prompts(self) -> int:
        """Number of prompts whose answers are ordered."""
        return distinct(self._prompts)


class Contradictions:
    """The same two answers ordered both ways, or one answer labelled both good and bad."""

    wants = "labels"

    def __init__(self, edges: Edges) -> None:
        self._edges, self._labelled = edges, False
        self._items, self._answers, self._good = Column("I"), Column("q"), bytearray()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if facts.labels]:
            self._labelled = True
            for answer, label in zip(facts.answers, facts.labels, strict=False):
                if label is not None:
                    self._items.append(facts.index)
                    self._answers.append(hash((facts.prompt_key, answer)))
                    self._good.append(label)

    def groups(self) -> list[list[int]]:
        """The numbers of the items that contradict each other, one group per pair of answers or label."""
        groups: list[tuple[int, list[int]]] = []
        for places in repeated(self._answers):
            good_places = [place for place in places if self._good[place]]
            bad_places = [place for place in places if not self._good[place]]
            if good_places and bad_places:
                groups.append((places[0], [self._items[place] for place in (*good_places, *bad_places)]))
        return self._edges.both_ways() + [items for _, items in sorted(groups)]

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not table.pairs and not self._labelled:
            return None
        groups = self.groups()
        hit = [item for group in groups for item in group]
        subject = "1 pair or label is" if len(groups) == 1 else f"{len(groups)} pairs or labels are"
        message = f"{subject} stated both ways" + (f", by {len(hit)} items" if hit else "")
        remedy = "look at them and keep one side: both together pull against each other"
        severity: Severity = "major" if hit else "ok"
        return finding("contradictions", severity, len(groups), table.items, message, remedy, table.ids.first(hit))


class Cycles:
    """Prompts whose answers beat each other in a cycle of three or more."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges

    add = add_nothing

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        long, circles = self._edges.circles()
        if not long:
            return None
        prompts = self._edges.prompts
        message = f"{len(circles)} of {prompts} prompts order their answers in a circle"
        remedy = (
            "separate votes on pairs can be circular, a ranking cannot: check how rows made of rankings were joined"
        )
        ids = table.ids.first(item for items in circles for item in items)
        return finding("cycles", "major" if circles else "ok", len(circles), prompts, message, remedy, ids)


def contradictions(items: Iterable[Item]) -> list[list[Item]]:
    """Groups of items that state opposite orders of the same two answers, or opposite labels for one answer.

    Disagreement *within* an item (several annotators) is not a contradiction: it is pooled into a probability.
    """
    edges, items = Edges(), list(items)
    check = Contradictions(edges)
    for k, item in enumerate(items):
        facts = read_item(item, k)
        edges.add([facts])
        check.add([facts])
    return [[items[k] for k in group] for group in check.groups()]


def _key(facts: ItemFacts) -> int:
    """A hash of :func:`afzal.quality.clean.duplicate_key`, with a shortcut for one vote on two answers."""
    item = facts.item
    vote = item.votes[0] if len(item.votes) == 1 and len(item.responses) == 2 else None
    if type(vote) is not Comparison or (item.extra and template_fields(item)):
        return hash(duplicate_key(item))
    try:
        prompt, first, second = hash(item.prompt), hash(item.responses[0].turns), hash(item.responses[1].turns)
    except TypeError:  # images and sounds are mappings
        return hash(duplicate_key(item))
    # The answers by their hashes, the smaller first, and the vote as one on the first against the second.
    swapped = first > second
    vote_hash = facts.vote_facts.opinions.get(swapped)
    if vote_hash is None:
        vote_hash = facts.vote_facts.opinions[swapped] = opinion(vote, swapped)
    return hash((prompt, second, first, vote_hash) if swapped else (prompt, first, second, vote_hash))


def opinion(vote: Comparison, swapped: bool) -> int:
    """A hash of a vote on response 0 against response 1, or the other way round if ``swapped``."""
    outcome, p, shown = vote.outcome, vote.probability, vote.shown_first
    if (vote.first == 1) != swapped:
        outcome, p = SWAPPED[outcome], None if p is None else 1.0 - p
    if swapped:
        shown = None if shown is None else 1 - shown
    return hash(
        (outcome, p, shown, vote.strength, vote.weight, vote.annotator, vote.axis, vote.seconds, vote.id, vote.at)
    )


def _has_cycle(edges: Iterable[tuple[int, int]]) -> bool:
    """Whether a cycle of three or more remains without pairs stated both ways."""
    remaining = set(edges)
    remaining -= {(b, a) for a, b in remaining}
    while remaining:
        sources = {a for a, _ in remaining} - {b for _, b in remaining}
        if not sources:
            return True
        remaining = {(a, b) for a, b in remaining if a not in sources}
    return False
