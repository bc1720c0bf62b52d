"""Checks for shortcuts that decide pairs instead of quality: format, source, length within one type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from afzal.data.dataset import Losses
from afzal.quality.categories import Categories, Category
from afzal.quality.columns import Column, FirstIds, clusters
from afzal.quality.finding import Finding, Severity, finding, percent
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.thresholds import MANY_KINDS, SHORTCUT, SHORTCUT_PAIRS, SOURCE_SHORTCUT
from afzal.stats.intervals import Interval, share

MARKS = ("a list", "a heading", "bold text", "a code block", "a refusal")
_LIST, _HEADING, _BOLD, _CODE, _REFUSAL = (1 << k for k in range(len(MARKS)))
# The match includes the line feed before the line, so the search jumps from one to the next.
_LIST_LINE = re.compile(r"\n\s{0,3}(?:[-*\u2022]|\d{1,2}[.)])(?=\s)")
_REFUSAL_STARTS = frozenset("ISA")
_REFUSES = re.compile(
    r"\s*(?:I(?:['\u2019]m| am) (?:really |very |so )?(?:sorry|unable|not able)|Sorry[,.]|I apologi[sz]e"
    r"|I (?:cannot|can['\u2019]?t|won['\u2019]?t|will not)\b|As an AI\b)"
)


class DecidedPairs:
    """Pairs in which one answer has a feature that the other lacks, and whether it wins."""

    def __init__(self) -> None:
        self._items, self._wins, self._weights = Column("I"), bytearray(), Column("d")

    def __len__(self) -> int:
        return len(self._items)

    @property
    def wins(self) -> int:
        """Number of pairs in which it wins."""
        return sum(self._wins)

    def add(self, item: int, wins: bool, weight: float) -> None:
        """Add a pair: its item's number, whether the answer with the feature is preferred, and its weight."""
        self._items.append(item)
        self._wins.append(wins)
        self._weights.append(weight)

    def of(self, field: Category, code: int) -> DecidedPairs:
        """The pairs whose items have the given value of a field."""
        chosen = DecidedPairs()
        for item, wins, weight in zip(self._items, self._wins, self._weights, strict=True):
            if field.codes[item] == code:
                chosen.add(item, bool(wins), weight)
        return chosen

    def share(self, table: ItemTable) -> Interval:
        """The share of wins, with its interval over prompts."""
        prompts = table.prompts.read()
        return share(clusters(Column("q", (prompts[item] for item in self._items)), self._wins, self._weights))

    def first(self, table: ItemTable, winners: bool) -> FirstIds:
        """The first items in which it wins, or in which it loses."""
        ids = FirstIds()
        for item, wins in zip(self._items, self._wins, strict=True):
            if bool(wins) is winners:
                ids.add(table.ids[item])
        return ids


@dataclass(frozen=True, slots=True)
class Rate:
    """How often answers with a feature win: ``what`` the answer is, and the pairs."""

    what: str
    pairs: DecidedPairs
    interval: Interval

    @property
    def ends(self) -> float:
        """The interval's end nearer to one half, as a share of the winning side."""
        low, high = self.interval.ends
        return max(low, 1 - high)


class LengthBiasByType:
    """The longer answer's share of wins in each type; over all types it may cancel out."""

    wants = "pairs"

    def __init__(self, categories: Categories) -> None:
        self._categories, self._pairs = categories, DecidedPairs()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if facts.item.extra]:
            for pair in facts.pairs:
                gap = facts.lengths[pair.i] - facts.lengths[pair.j]
                if pair.p != 0.5 and gap and pair.weight > 0:
                    self._pairs.add(facts.index, gap > 0, pair.weight)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        rates = list(_by_type({"the longer answer": self._pairs}, self._categories.fields(table.items), table))
        remedy = "a model may learn length instead of quality in these types: balance them, or watch their samples"
        return _worst("length_bias_by_type", rates, SHORTCUT, table, remedy)


class FormatBias:
    """How often the answer with a list, a heading, bold text, code or a refusal wins against one without, by type."""

    wants = "pairs"

    def __init__(self, categories: Categories) -> None:
        self._categories = categories
        self._pairs = [DecidedPairs() for _ in MARKS]

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            marks = [marks_of(text) for text in facts.texts]
            if not any(marks):
                continue
            for pair in facts.pairs:
                differing = marks[pair.i] ^ marks[pair.j]
                if differing and pair.p != 0.5 and pair.weight > 0:
                    for k, pairs in enumerate(self._pairs):
                        if differing >> k & 1:
                            pairs.add(facts.index, bool(marks[pair.i] >> k & 1), pair.weight)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        pairs = {f"the answer with {mark}": decided for mark, decided in zip(MARKS, self._pairs, strict=True)}
        rates = [
            Rate(description, decided, decided.share(table))
            for description, decided in pairs.items()
            if len(decided) >= SHORTCUT_PAIRS
        ]
        rates += _by_type(pairs, self._categories.fields(table.items), table)
        remedy = "a model may learn the format instead of quality: add pairs in which it does not decide"
        return _worst("format_bias", rates, SHORTCUT, table, remedy)


class SourceBias:
    """How often each source's answers win against those of others; if one always wins, its style is the reward."""

    wants = "pairs"

    def __init__(self) -> None:
        self._pairs: dict[str, DecidedPairs] = {}

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            answers = facts.item.responses
            for pair in facts.pairs:
                better = answers[pair.i].source
                if not better:
                    continue
                worse = answers[pair.j].source
                if not (isinstance(better, str) and isinstance(worse, str)):  # rows may contain anything there
                    continue
                if better and worse and better != worse and pair.p != 0.5 and pair.weight > 0:
                    for name, wins in ((better, True), (worse, False)):
                        if name in self._pairs or len(self._pairs) < MANY_KINDS:
                            self._pairs.setdefault(name, DecidedPairs()).add(facts.index, wins, pair.weight)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        rates = [
            Rate(f"the answer of {name[:40]}", decided, decided.share(table))
            for name, decided in sorted(self._pairs.items())
            if len(decided) >= SHORTCUT_PAIRS
        ]
        remedy = "a model may learn who wrote an answer: add pairs of two answers by one source"
        return _worst("source_bias", rates, SOURCE_SHORTCUT, table, remedy)


def marks_of(text: str) -> int:
    """The ``MARKS`` of an answer, one bit each; a list has at least two lines."""
    marks = 0
    if "\n" in text:
        if "\n#" in text or text.startswith("#"):
            marks |= _HEADING
        if len(_LIST_LINE.findall(f"\n{text}")) > 1:
            marks |= _LIST
    if "**" in text:
        marks |= _BOLD
    if "```" in text:
        marks |= _CODE
    return marks | _REFUSAL if text.lstrip()[:1] in _REFUSAL_STARTS and _REFUSES.match(text) else marks


def _by_type(pairs: Mapping[str, DecidedPairs], fields: Mapping[str, Category], table: ItemTable) -> Iterator[Rate]:
    """The rates in all types with enough pairs."""
    for name, field in fields.items():
        for code, value in enumerate(field.names):
            for description, decided in pairs.items():
                if len(decided) >= SHORTCUT_PAIRS and len(of_type := decided.of(field, code)) >= SHORTCUT_PAIRS:
                    yield Rate(f"{description} in {name} {value[:40] or '(none)'}", of_type, of_type.share(table))


def _worst(code: str, rates: list[Rate], limit: float, table: ItemTable, remedy: str) -> Finding | None:
    """The finding for the rate farthest from one half; None if no rate has enough pairs."""
    if not rates:
        return None
    ends: Callable[[Rate], float] = lambda rate: rate.ends  # noqa: E731
    rates = sorted(rates, key=ends, reverse=True)
    hit = [rate for rate in rates if rate.ends > limit]
    severity: Severity = "minor" if hit else "ok"
    message = "; ".join(
        f"{rate.what} is preferred in {percent(rate.interval)} of {len(rate.pairs)} pairs" for rate in hit[:5]
    )
    more = f"; and {len(hit) - 5} more" if len(hit) > 5 else ""
    worst = rates[0]
    if not hit:
        message = f"{worst.what} is preferred in {percent(worst.interval)} of {len(worst.pairs)} pairs"
        message += f", the most one-sided of {len(rates)}" if len(rates) > 1 else ""
    ids = worst.pairs.first(table, worst.interval.value > 0.5)
    return finding(
        code, severity, worst.pairs.wins, len(worst.pairs), message + more, remedy, ids if hit else (), worst.interval
    )
