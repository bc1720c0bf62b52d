"""Figures as plain values for pages and files, with None in place of NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.stats.intervals import Interval
from afzal.text import sign


def finite(value: Any) -> Any:
    """The value itself; None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def interval(known: Interval) -> dict[str, float | None]:
    """``value``, ``low`` and ``high``."""
    return {key: finite(getattr(known, key)) for key in ("value", "low", "high")}


def figure(known: Interval) -> dict[str, float | None]:
    """The same with ``n``, the number of independent units."""
    return interval(known) | {"n": known.n}


def points(gap: Mapping[str, Any], unit: str = "") -> str:
    """A difference of shares in points with its interval, such as ``+3.1 [+0.2, +6.0]``."""
    ends = "" if gap["low"] is None else f" [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
    return f"{100 * gap['value']:+.1f}{unit}{ends}"


def leader(gaps: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says who is first, and who is not told apart from it.

    Args:
        gaps: differences with ``first``, ``second``, ``low`` and ``high``; those of the first place come first.
    """
    first = gaps[0]["first"]
    level = [gap["second"] for gap in gaps if gap["first"] == first and not sign(gap)]
    if not level:
        return f"{first} leads."
    if len(level) > 3:
        level = [*level[:2], f"{len(level) - 2} others"]
    others = f"{', '.join(level[:-1])} and {level[-1]}" if len(level) > 1 else level[0]
    return f"{first} is first, but not told apart from {others}."
