"""The finding of an audit, and the interface of a check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

from afzal.data.dataset import Losses
from afzal.quality.columns import SHOWN_IDS
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.thresholds import THRESHOLDS
from afzal.stats.intervals import Interval

Severity = Literal["ok", "minor", "major"]

CLEANED = "training removes them and lists each one in dropped.jsonl"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        code: short name, such as ``"contradictions"``.
        severity: ok (nothing to do), minor (know about it), major (fix it first).
        count, total: number of hits, and of cases checked.
        message: the result in one sentence with its numbers.
        remedy: what to do about it; "" if nothing.
        value, low, high: a rate and its 95% interval over prompts, if the finding is a rate.
        ids: the first 20 items concerned.
        threshold: when it is minor or major, in words.
    """

    code: str
    severity: Severity
    count: int
    total: int
    message: str
    remedy: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ids: list[str] = field(default_factory=list)
    threshold: str = ""


@dataclass(frozen=True, slots=True)
class NotRun:
    """Checks that were not run.

    Attributes:
        codes: short names of their findings.
        why: the reason in a few words.
        how: the flag that runs them.
    """

    codes: tuple[str, ...]
    why: str
    how: str


class Check(Protocol):
    """A check that sees items in batches and reports a finding at the end, or None if there was nothing to check.

    A class attribute ``wants`` restricts it to some items (:func:`wants`).
    """

    def add(self, batch: Sequence[ItemFacts]) -> None:
        """Check more items, in order; a few hundred per call, since a call per item would cost more than the check."""

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        """The finding, given the table of all items, the losses at reading, and the number of rows read."""


Wants = Literal["items", "pairs", "labels", "media"]


def wants(check: Check) -> Wants:
    """The items that a check sees: all, or those with pairs, labels or media, according to its ``wants``."""
    return getattr(check, "wants", "items")


def add_nothing(check: Check, batch: Sequence[ItemFacts]) -> None:
    """The ``add`` of a check that only uses the table of all items."""


def finding(
    code: str,
    severity: Severity,
    count: int,
    total: int,
    message: str,
    remedy: str = "",
    ids: Iterable[str] = (),
    rate: Interval | None = None,
) -> Finding:
    """A finding with its threshold; the remedy is kept only if there is something to fix.

    Args:
        rate: the rate and its interval, if the finding is a rate.
    """
    shown = list(islice(ids, SHOWN_IDS))
    numbers = (rate.value, *rate.ends) if rate else (None, None, None)
    return Finding(
        code, severity, count, total, message, remedy if severity != "ok" else "", *numbers, shown, THRESHOLDS[code]
    )


def percent(rate: Interval) -> str:
    """A rate with its interval, for messages."""
    low, high = rate.ends
    return f"{rate.value:.1%} (95% interval {low:.1%}-{high:.1%})"
