"""Round values for axes, their labels, axis ranges, and curves thinned to the visible detail."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from afzal.text import is_number, number

Point = tuple[float, float | None]

CHAR = 6.1  # width of one digit at the 11 px of the axis labels
_THIN = 400  # points drawn per series at most


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high], about ``count`` of them, at least one."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"ticks need finite ends in order, got {low} and {high}")
    if low == high:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if first > last:
        return [low]
    decimals = max(0, -math.floor(math.log10(step)) + 1)
    return [round(k * step, decimals) + 0.0 for k in range(first, last + 1)]


def integer_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """:func:`nice_ticks` that are whole numbers, for steps."""
    return [t for t in nice_ticks(low, high, count) if t == int(t)] or [float(math.ceil(low))]


def fitting_ticks(low: float, high: float, width: float, *, integer: bool = False) -> dict[float, str]:
    """Round values with their labels, as many as fit side by side in ``width`` SVG units, at most about six."""
    for count in (6, 5, 4, 3, 2):
        ticks = integer_ticks(low, high, count) if integer else nice_ticks(low, high, count)
        labels = tick_labels(ticks)
        if sum(len(label) * CHAR + 14 for label in labels) <= width:
            break
    return dict(zip(ticks, labels, strict=True))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with the same number of decimals, so that they line up; powers of ten only below 1/1000."""
    size = max((abs(t) for t in ticks), default=0.0)
    if 0 < size < 1e-3:
        return [number(t) for t in ticks]
    decimals = max((_decimals(t) for t in ticks), default=0)
    return [f"{t:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for t in ticks]


def domain(values: Iterable[float | None], pad: float = 0.06) -> tuple[float, float]:
    """The range to show: the values with some padding; (0, 1) without values, a unit-sized range around a constant."""
    finite = [v for v in values if is_number(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        half = abs(low) * 0.1 or 0.5
        return low - half, high + half
    padding = (high - low) * pad
    return low - padding, high + padding


def thin(points: Sequence[Point], limit: int = _THIN) -> list[Point]:
    """At most about ``limit`` points, keeping both extremes of every stretch, so that no spike disappears."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    thinned: list[Point] = []
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        finite = sorted((y, i) for i in stretch if is_number(y := points[i][1]))
        ends = {finite[0][1], finite[-1][1]} if finite else {start}
        thinned += [points[i] for i in sorted(ends)]
    return thinned


def _decimals(value: float) -> int:
    digits = f"{value:.10f}".rstrip("0")
    return len(digits.split(".")[1])
