"""Line charts as inline SVG: nice ticks, gaps, bands, direct labels, and a readout under the pointer without a script.

Colours and type come from the style sheet by class (``s0`` … ``s6``), so one drawing serves light, dark and print; see
:func:`standalone` for a file. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from afzal.text import is_number, number, visible

Mark = Literal["line", "faint", "dots", "dashed"]
Point = tuple[float, float | None]

# Colours by meaning, the same in every chart of a report.
TRAIN, HELD_OUT, CHOSEN, REJECTED, OPTIMUM, OTHER, LAST = range(7)

_CHAR = 6.1  # width of one digit at the 11 px of the axis labels
_LABEL_GAP = 12.0  # least vertical distance between two direct labels
_SHORT = 6  # letters of an axis label that fits beside the values
_COLUMNS = 60  # places under the pointer; more would only fatten the file
_THIN = 400  # points drawn per series at most


@dataclass(frozen=True, slots=True)
class Series:
    """One line: ``points`` (x, y) in order of x; a y that is None or not finite breaks the line.

    ``low`` and ``high``, when given, are as long as ``points`` and bound a band (95% interval). ``label`` is written
    at the end of the line; ``name`` stands in the legend and in the readout.
    """

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    mark: Mark = "line"
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal line with a meaning, such as chance or the value at the reference."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot area in SVG units and the data ranges it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, y: float) -> float:
        return self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


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


def whole_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """:func:`nice_ticks` that are whole numbers, for steps."""
    return [t for t in nice_ticks(low, high, count) if t == int(t)] or [float(math.ceil(low))]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with one number of decimals for all, so that they line up; powers of ten only below 1/1000."""
    size = max((abs(t) for t in ticks), default=0.0)
    if 0 < size < 1e-3:
        return [number(t) for t in ticks]
    decimals = max((_decimals(t) for t in ticks), default=0)
    return [f"{t:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for t in ticks]


def domain(values: Iterable[float | None], pad: float = 0.06) -> tuple[float, float]:
    """The range to show: the values with a little air; (0, 1) without values, a unit-sized range round a constant."""
    finite = [v for v in values if is_number(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        half = abs(low) * 0.1 or 0.5
        return low - half, high + half
    air = (high - low) * pad
    return low - air, high + air


def thin(points: Sequence[Point], limit: int = _THIN) -> list[Point]:
    """At most about ``limit`` points, keeping both extremes of every stretch, so that no spike disappears."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        finite = sorted((y, i) for i in stretch if is_number(y := points[i][1]))
        ends = {finite[0][1], finite[-1][1]} if finite else {start}
        kept += [points[i] for i in sorted(ends)]
    return kept


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    marked: tuple[float, str] | None = None,
    x_ticks: Mapping[float, str] | None = None,
    width: int = 360,
    height: int = 226,
) -> str:
    """An SVG line chart.

    Args:
        series: drawn in order, the last on top.
        y_range: fixed range of y (for shares, (0, 1)); by default the range of the data and rules.
        rules: horizontal lines with a label.
        marked: an x with a label, drawn as a vertical line.
        x_ticks: what stands at which x, in place of round values, such as doublings on a logarithmic axis.
    """
    xs = sorted({x for s in series for x, _ in s.points})
    bounds = [v for s in series for v in (*(y for _, y in s.points), *s.low, *s.high)]
    y = y_range or domain([*bounds, *(r.y for r in rules)])
    x = (xs[0], xs[-1]) if len(xs) > 1 else domain(xs)
    y_ticks = nice_ticks(*y)
    labels = tick_labels(y_ticks)
    right = max((len(s.label) for s in series), default=0)
    frame = Frame(
        left=10 + max(len(label) for label in labels) * _CHAR,
        top=24,
        right=width - (12 if not right else 10 + right * 6.0),
        bottom=height - (24 if len(x_label) <= _SHORT else 38),
        x=x,
        y=y,
    )
    ticks = whole_ticks(*x) if x_label in ("step", "steps") else nice_ticks(*x)
    named = x_ticks or dict(zip(ticks, tick_labels(ticks), strict=True))
    body = [
        _y_axis(frame, y_ticks, labels, y_label),
        _x_axis(frame, named, x_label),
        *(_rule(frame, rule) for rule in rules),
        mark(frame, *marked) if marked else "",
        *(band(frame, s) for s in series if s.low),
        *(_line(frame, s) for s in series),
        _end_labels(frame, series, width),
        _columns(frame, series, xs, x_label, x_ticks or {}),
    ]
    return wrap("".join(body), width, height, title)


def wrap(body: str, width: int, height: int, title: str) -> str:
    """The SVG element round a drawing, named for readers who do not see it."""
    name = escape(visible(title), quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{body}</svg>'


def standalone(drawing: str) -> str:
    """A drawing of this module as an SVG file by itself: size, background and style sheet inside."""
    head, rest = drawing.split(">", 1)
    width, height = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    size = f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg"'
    behind = '<rect class="paper" width="100%" height="100%"/>'
    return f"{head} {size}><style>{escape(style(), quote=False)}</style>{behind}{rest}"


def style() -> str:
    """The colours and rules that every drawing needs, on a page and by itself."""
    return Path(__file__).with_name("chart.css").read_text("utf-8")


def text(x: float, y: float, content: str, css: str, anchor: str = "start") -> str:
    """One escaped text element."""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{at}>{escape(visible(content))}</text>'


def spread(wanted: Sequence[float], low: float, high: float, gap: float = _LABEL_GAP) -> list[float]:
    """Positions near the wanted ones, in the same order, at least ``gap`` apart and, where there is room, in range."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    placed = [0.0] * len(wanted)
    last = low - gap
    for i in order:
        last = placed[i] = max(wanted[i], last + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def y_axis_and_grid(frame: Frame, label: str) -> str:
    """Grid lines with round values on the left, the unit above."""
    ticks = nice_ticks(*frame.y)
    return _y_axis(frame, ticks, tick_labels(ticks), label)


def x_axis(frame: Frame, label: str) -> str:
    """Round values under the plot, the unit at the right end."""
    ticks = nice_ticks(*frame.x, 6)
    return _x_axis(frame, dict(zip(ticks, tick_labels(ticks), strict=True)), label)


def mark(frame: Frame, x: float, label: str) -> str:
    """A vertical line with a label; nothing where it is out of sight."""
    if not frame.x[0] <= x <= frame.x[1]:
        return ""
    px = frame.px(x)
    near_end = px > (frame.left + frame.right) / 2
    line = f'<path class="rule" d="M{px:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>'
    return line + text(px - 4 if near_end else px + 4, frame.bottom - 5, label, "note", "end" if near_end else "start")


def _decimals(value: float) -> int:
    shown = f"{value:.10f}".rstrip("0")
    return len(shown.split(".")[1])


def _y_axis(frame: Frame, ticks: Sequence[float], labels: Sequence[str], label: str) -> str:
    parts = []
    for tick, name in zip(ticks, labels, strict=True):
        y = frame.py(tick)
        parts.append(f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(text(frame.left - 5, y + 3.5, name, "tick", "end"))
    if label:
        parts.append(text(2, 11, label, "unit"))
    return "".join(parts)


def _x_axis(frame: Frame, ticks: Mapping[float, str], label: str) -> str:
    y = frame.bottom
    parts = [f'<path class="axis" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>']
    beside = len(label) <= _SHORT  # a short unit stands in the row of the values, a long one below it
    end = frame.right - len(label) * 5.6 - 6 if label and beside else math.inf
    for tick, name in ticks.items():
        x = frame.px(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>')
        if x + len(name) * _CHAR / 2 < end or x == frame.left:
            parts.append(text(x, y + 16, name, "tick", "middle"))
    if label:
        parts.append(text(frame.right, y + (16 if beside else 31), label, "unit", "end"))
    return "".join(parts)


def _rule(frame: Frame, rule: Rule) -> str:
    if not frame.y[0] <= rule.y <= frame.y[1]:
        return ""
    y = frame.py(rule.y)
    line = f'<path class="rule" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'
    return line + text(frame.right - 2, y - 4 if y > frame.top + 14 else y + 11, rule.label, "note", "end")


def _runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The unbroken stretches of a line."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if is_number(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(frame: Frame, series: Series) -> str:
    parts = []
    for run in _runs(thin(series.points)):
        at = [(frame.px(x), frame.py(y)) for x, y in run]
        if len(at) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
            parts.append(f'<path class="l {series.mark} s{series.colour}" d="M{path}"/>')
        if series.mark == "dots" or len(at) == 1:
            parts += [f'<circle class="d s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in at]
    return "".join(parts)


def band(frame: Frame, series: Series) -> str:
    """The area between ``low`` and ``high``; a bar where only one point has both."""
    parts, run = [], []
    rows = [
        (x, low, high)
        for (x, _), low, high in zip(series.points, series.low, series.high, strict=True)
        if is_number(low) and is_number(high)
    ]
    for x, low, high in rows:
        run.append((frame.px(x), frame.py(low), frame.py(high)))
    if len(run) > 1:
        there = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in run)
        back = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(run))
        parts.append(f'<path class="band s{series.colour}" d="M{there}L{back}Z"/>')
    elif run:
        x, low, high = run[0]
        parts.append(f'<path class="l line s{series.colour}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
    return "".join(parts)


def _end_labels(frame: Frame, series: Sequence[Series], width: int) -> str:
    ends = []
    for s in series:
        runs = _runs(s.points)
        if s.label and runs:
            ends.append((s, frame.py(runs[-1][-1][1])))
    places = spread([y for _, y in ends], frame.top, frame.bottom)
    return "".join(
        text(frame.right + 6, y + 4, s.label, f"end s{s.colour}") for (s, _), y in zip(ends, places, strict=True)
    )


def _columns(
    frame: Frame, series: Sequence[Series], xs: Sequence[float], x_label: str, names: Mapping[float, str]
) -> str:
    """Invisible strips over the plot; the one under the pointer shows its values (CSS alone, titles for the rest)."""
    chosen = _chosen_columns(series, xs)
    lookup = [dict(s.points) for s in series]
    parts = []
    for k, x in enumerate(chosen):
        left = frame.left if k == 0 else frame.px((chosen[k - 1] + x) / 2)
        right = frame.right if k == len(chosen) - 1 else frame.px((x + chosen[k + 1]) / 2)
        here = [(s, v) for s, at in zip(series, lookup, strict=True) if is_number(v := at.get(x))]
        if not here:
            continue
        place = f"{x_label} {names.get(x) or number(int(x) if x == int(x) else x)}"
        words = place + "".join(f" · {s.name} {number(v)}" for s, v in here)
        values = "".join(f'<tspan class="end s{s.colour}" dx="9">{number(v)}</tspan>' for s, v in here)
        px = frame.px(x)
        dots = "".join(f'<circle class="d s{s.colour}" cx="{px:.1f}" cy="{frame.py(v):.1f}" r="3.4"/>' for s, v in here)
        parts.append(
            f'<g class="col"><rect x="{left:.1f}" y="{frame.top:.0f}" width="{max(right - left, 0.1):.1f}" '
            f'height="{frame.bottom - frame.top:.0f}"><title>{escape(visible(words))}</title></rect>'
            f'<g class="at"><path d="M{px:.1f} {frame.top:.0f}V{frame.bottom:.0f}"/>{dots}'
            f'<text class="read" x="2" y="11">{escape(visible(place))}{values}</text></g></g>'
        )
    return "".join(parts)


def _chosen_columns(series: Sequence[Series], xs: Sequence[float]) -> list[float]:
    if len(xs) <= _COLUMNS:
        return list(xs)
    even = {xs[round(k * (len(xs) - 1) / (_COLUMNS - 1))] for k in range(_COLUMNS)}
    sparse = {x for s in series if len(s.points) <= _COLUMNS // 2 for x, _ in s.points}
    return sorted(even | sparse)
