"""Figures as plain values for pages and files, with None in place of NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.stats.intervals import Interval
from afzal.text import sign

EQUAL = 1e-6
"""Differences below this are rounding."""


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
    equal = [gap["second"] for gap in gaps if gap["first"] == first and abs(gap["value"]) < EQUAL]
    level = [gap["second"] for gap in gaps if gap["first"] == first and not sign(gap) and gap["second"] not in equal]
    leads = f"{_listed([first, *equal])} share the first place" if equal else f"{first} is first"
    if not level:
        return f"{leads}." if equal else f"{first} leads."
    return f"{leads}, but {'are ' if equal else ''}not told apart from {_listed(level)}."


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} others"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
