"""Fields that sort the items, such as type or source, stored as one small number per item and field."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from afzal.data.dataset import Losses
from afzal.quality.columns import clusters
from afzal.quality.finding import Finding, Severity, add_nothing, finding, percent
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.thresholds import MANY_KINDS, ONE_KIND
from afzal.stats.intervals import Interval, share

FIELDS = frozenset(
    {"type", "category", "task", "task_type", "domain", "subset", "topic", "dimension", "difficulty"}
    | {"source", "dataset", "origin", "language", "lang", "split"}
)


@dataclass(frozen=True, slots=True)
class Category:
    """One field that sorts the items.

    Attributes:
        names: its distinct values; the first is "" for items without it.
        codes: the number of each item's value.
    """

    names: list[str]
    codes: bytes


class Categories:
    """The fields of the items so far that have few distinct values."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, int]] = {}
        self._codes: dict[str, bytearray] = {}
        self._too_many: set[str] = set()  # fields with too many values

    def add(self, batch: Sequence[ItemFacts]) -> None:
        """Add more items."""
        for facts in batch:
            extra = facts.item.extra
            for name in extra:
                if name in FIELDS and name not in self._too_many:
                    self._note(facts.index, name, extra[name])

    def _note(self, index: int, name: str, value: object) -> None:
        if not isinstance(value, str) or not value.strip():
            return
        names, codes = self._names.setdefault(name, {"": 0}), self._codes.setdefault(name, bytearray())
        if value not in names:
            if len(names) > MANY_KINDS:
                self._too_many.add(name)
                del self._names[name], self._codes[name]
                return
            names[value] = len(names)
        codes.extend(bytes(index - len(codes)))
        codes.append(names[value])

    def fields(self, items: int) -> dict[str, Category]:
        """The fields with two or more values by name, after all ``items`` have been added."""
        fields = {}
        for name, codes in self._codes.items():
            padded = bytes(codes) + bytes(items - len(codes))
            if len(set(padded)) > 1:
                fields[name] = Category(list(self._names[name]), padded)
        return fields


class Balance:
    """Whether nearly all items are of one type, source or language; a missing value is a separate class."""

    add = add_nothing

    def __init__(self, categories: Categories) -> None:
        self._categories = categories

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        shares: list[tuple[Interval, str, int]] = []
        for name, field in self._categories.fields(table.items).items():
            counts = Counter(field.codes)
            code, most = counts.most_common(1)[0]
            rate = share(clusters(table.units, [c == code for c in field.codes]))
            largest = field.names[code][:40] or "(none)"
            effective = effective_number(list(counts.values()))
            text = f"{name} has {len(counts)} values, as diverse as {effective:.1f} of equal size; largest: {largest}"
            shares.append((rate, f"{text}, {percent(rate)}", most))
        if not shares:
            return None
        shares.sort(key=lambda entry: -entry[0].value)
        rate, _, most = shares[0]
        severity: Severity = "minor" if rate.ends[0] > ONE_KIND else "ok"
        message, remedy = (
            "; ".join(text for _, text, _ in shares),
            "add items of the rare kinds, or sample them more often",
        )
        return finding("balance", severity, most, table.items, message, remedy, rate=rate)


def effective_number(counts: list[int]) -> float:
    """exp of the entropy of a distribution (Hill 1973, order 1): as many equally frequent classes are as diverse."""
    total = sum(counts)
    return math.exp(-math.fsum(n / total * math.log(n / total) for n in counts if n))
