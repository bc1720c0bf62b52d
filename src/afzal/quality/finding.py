"""What a finding is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

from afzal.data.dataset import Losses
from afzal.quality.columns import SHOWN_IDS
from afzal.quality.thresholds import THRESHOLDS
from afzal.quality.view import Told, View
from afzal.stats.intervals import Interval

Severity = Literal["ok", "minor", "major"]

CLEANED = "training removes them and lists each one in dropped.jsonl"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for.

    Attributes:
        code: short name, such as ``"contradictions"``.
        severity: ok (nothing to do), minor (know about it), major (fix it first).
        count, total: how many of how many.
        message: what was seen, in one sentence with its numbers.
        remedy: what to do about it; "" when nothing.
        value, low, high: a rate and its 95 % interval over prompts, where the finding is one.
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
    """Findings that were not looked for.

    Attributes:
        codes: their short names.
        why: what was missing, in a few words.
        how: the flag that asks for them.
    """

    codes: tuple[str, ...]
    why: str
    how: str


class Look(Protocol):
    """Looks at some items after others, and says at the end what it saw; None when there was nothing to look at.

    A class attribute ``wants`` says that only some items concern it (:func:`wants`).
    """

    def add(self, batch: Sequence[Told]) -> None:
        """Some more items, in their order; a few hundred in one call, which would cost more than the look itself."""

    def finding(self, view: View, losses: Losses, rows: int) -> Finding | None:
        """What was seen, given what all items come to, what was dropped at reading, and the number of rows read."""


Wants = Literal["items", "pairs", "labels", "media"]


def wants(look: Look) -> Wants:
    """Which items a look is shown: all, or those with pairs, labels or media, as its ``wants`` says."""
    return getattr(look, "wants", "items")


def nothing(look: Look, batch: Sequence[Told]) -> None:
    """The ``add`` of what looks at all items together only."""


def finding(
    code: str,
    severity: Severity,
    count: int,
    total: int,
    message: str,
    remedy: str = "",
    ids: Iterable[str] = (),
    known: Interval | None = None,
) -> Finding:
    """A finding with its threshold; its remedy is given only when there is something to fix.

    Args:
        known: the rate and its interval, where the finding is a rate.
    """
    shown = list(islice(ids, SHOWN_IDS))
    rate = (known.value, *known.ends) if known else (None, None, None)
    return Finding(
        code, severity, count, total, message, remedy if severity != "ok" else "", *rate, shown, THRESHOLDS[code]
    )


def percent(known: Interval) -> str:
    """A rate with its interval, for messages."""
    low, high = known.ends
    return f"{known.value:.1%} (95 % interval {low:.1%}-{high:.1%})"
