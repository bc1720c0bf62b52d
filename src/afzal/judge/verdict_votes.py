"""Verdicts that earlier judges left among the votes of rows: they are not people's votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.records import Item
from afzal.text import plural

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
        return f"{plural(self.verdicts, 'verdict')} of {', '.join(self.judges)}"

    def notes(self, place: str) -> list[str]:
        """The line that says what was taken out; empty if nothing was."""
        return [f"note: {self.in_words} in {place} are not people's votes"] if self.verdicts else []


def judges_of(item: Item) -> list[str]:
    """The names of the judges whose verdicts are among an item's votes."""
    names = item.extra.get(JUDGED_BY)
    return [str(name) for name in names] if isinstance(names, list) else []


def without_verdicts(items: Sequence[Item]) -> PeopleOnly:
    """The rows without the verdicts of judges.

    ``afzal judge`` writes verdicts as votes under the judge's name and records that name in the row. Compared with
    another judge, these votes would count as people's.
    """
    rows, verdicts, names = [], 0, set[str]()
    for item in items:
        if judges := judges_of(item):
            votes = tuple(vote for vote in item.votes if vote.annotator not in judges)
            verdicts += len(item.votes) - len(votes)
            names |= {str(vote.annotator) for vote in item.votes if vote.annotator in judges}
            item = replace(item, votes=votes)
        rows.append(item)
    return PeopleOnly(rows, verdicts, tuple(sorted(names)))


def naming(item: Item, judges: Sequence[str]) -> Mapping[str, Any]:
    """The item's ``extra`` with these names added to the judges."""
    return {**item.extra, JUDGED_BY: sorted({*judges_of(item), *judges})}
