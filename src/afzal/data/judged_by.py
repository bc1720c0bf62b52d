"""Verdicts that judges left among the votes of rows: they are not people's votes.

``afzal judge`` writes verdicts as votes under the judge's name and records that name in the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.records import Item

JUDGED_BY = "judged_by"
"""Field of ``Item.extra`` that names the judges whose verdicts are among an item's votes."""


@dataclass(frozen=True, slots=True)
class PeopleOnly:
    """Rows with people's votes only; ``verdicts`` is the number of votes taken out, and ``judges`` names who gave
    them."""

    items: list[Item]
    verdicts: int
    judges: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """``"4 verdicts of gpt"``."""
        return f"{self.verdicts:,} verdict{'' if self.verdicts == 1 else 's'} of {', '.join(self.judges)}"

    def notes(self, place: str) -> list[str]:
        """The line that says what was taken out; empty if nothing was."""
        return [f"note: {self.in_words} in {place} are not people's votes"] if self.verdicts else []


def judges_of(item: Item) -> list[str]:
    """The names of the judges whose verdicts are among an item's votes."""
    names = item.extra.get(JUDGED_BY)
    return [str(name) for name in names] if isinstance(names, list) else []


def only_judge(row: Mapping[str, Any]) -> str | None:
    """The judge who gave the one vote of a row, for layouts without a column of annotators; None without one name."""
    names = row.get(JUDGED_BY)
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else None


def without_verdicts(items: Sequence[Item]) -> PeopleOnly:
    """The rows without the verdicts of judges, which would count as people's votes or as the truth."""
    rows, verdicts, names = [], 0, set[str]()
    for item in items:
        if judges := judges_of(item):
            votes = tuple(vote for vote in item.votes if vote.annotator not in judges)
            verdicts += len(item.votes) - len(votes)
            names |= {str(vote.annotator) for vote in item.votes if vote.annotator in judges}
            item = replace(item, votes=votes)
        rows.append(item)
    return PeopleOnly(rows, verdicts, tuple(sorted(names)))


def naming(item: Item, judges: Iterable[str]) -> Mapping[str, Any]:
    """The item's ``extra`` with these names added to the judges."""
    return {**item.extra, JUDGED_BY: sorted({*judges_of(item), *judges})}


def naming_all(items: Sequence[Item]) -> Mapping[str, Any]:
    """The first item's ``extra`` with the judges of all items, whose votes are joined into one item."""
    judges = {name for item in items for name in judges_of(item)}
    return naming(items[0], judges) if judges else items[0].extra
