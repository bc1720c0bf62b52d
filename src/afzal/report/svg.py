"""Line charts as inline SVG: round ticks, gaps, bands, direct labels, and values at the pointer without a script.

Colours and fonts come from the style sheet by class (``s0`` … ``s6``), so one drawing serves light, dark and print; see
:func:`standalone` for a file. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from afzal.report.axes import CHAR, Point, domain, fitting_ticks, nice_ticks, thin, tick_labels
from afzal.report.geometry import LETTER, LINE, Box, LabelPlacer, clip, is_inside, points_along
from afzal.report.value_range import shown_range
from afzal.text import is_number, number, visible

Mark = Literal["line", "faint", "dots", "dashed"]

# Colours by meaning, the same in every chart of a report.
TRAIN, HELD_OUT, CHOSEN, REJECTED, OPTIMUM, OTHER, LAST = range(7)

_LABEL_GAP = 12.0  # smallest vertical distance between two direct labels
_ENDING = 0.34  # share of the width that labels at the ends of lines may take
_SHORT = 6  # letters of an axis label that fits in the row of values
_COLUMNS = 60  # places with values at the pointer; more would only make the file larger


@dataclass(frozen=True, slots=True)
class Series:
    """One line: ``points`` (x, y) in order of x; a y that is None or not finite breaks the line.

    ``low`` and ``high``, if given, are as long as ``points`` and bound a band (95% interval). ``label`` is written at
    the end of the line; ``name`` appears in the legend and at the pointer.
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
class PlotArea:
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

    @property
    def box(self) -> Box:
        return self.left, self.top, self.right, self.bottom


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
        y_range: fixed range of y, (0, 1) for shares; default: the range of data and rules, without a stray series or a
            few spikes (:func:`afzal.report.value_range.robust_range`). Values beyond it are marked at the edge.
        rules: horizontal lines with a label.
        marked: an x with a label, drawn as a vertical line.
        x_ticks: tick labels by x, in place of round values, such as doublings on a logarithmic axis.
    """
    xs = sorted({x for s in series for x, _ in s.points})
    groups = [[*(y for _, y in s.points), *s.low, *s.high] for s in series]
    y = y_range or domain([*shown_range(groups), *(r.y for r in rules)])
    x = (xs[0], xs[-1]) if len(xs) > 1 else domain(xs)
    y_ticks = nice_ticks(*y)
    labels = tick_labels(y_ticks)
    longest = int(_ENDING * width / LETTER)
    right = min(longest, max((len(s.label) for s in series), default=0))
    area = PlotArea(
        left=10 + max(len(label) for label in labels) * CHAR,
        top=24,
        right=width - (12 if not right else 10 + right * LETTER),
        bottom=height - (24 if len(x_label) <= _SHORT else 38),
        x=x,
        y=y,
    )
    tick_names = x_ticks or fitting_ticks(*x, area.right - area.left, integer=x_label in ("step", "steps"))
    placer = LabelPlacer(area.box, [point for s in series for point in _points_drawn(area, s)])
    body = [
        _y_axis(area, y_ticks, labels, y_label),
        _x_axis(area, tick_names, x_label),
        *(band(area, s) for s in series if s.low),
        *(_line(area, s) for s in series),
        _beyond(area, series, placer),
        *(_rule(area, rule, placer) for rule in rules),
        mark(area, *marked, placer) if marked else "",
        _end_labels(area, series, longest),
        _columns(area, series, xs, x_label, x_ticks or {}),
    ]
    return wrap("".join(body), width, height, title)


def wrap(body: str, width: int, height: int, title: str) -> str:
    """The SVG element around a drawing, with a name for screen readers."""
    name = escape(visible(title), quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{body}</svg>'


def standalone(drawing: str) -> str:
    """A drawing of this module as a stand-alone SVG file, with size, background and style sheet."""
    head, rest = drawing.split(">", 1)
    width, height = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    size = f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg"'
    background = '<rect class="paper" width="100%" height="100%"/>'
    return f"{head} {size}><style>{escape(style(), quote=False)}</style>{background}{rest}"


def style() -> str:
    """The colours and rules that every drawing needs, on a page and stand-alone."""
    return Path(__file__).with_name("chart.css").read_text("utf-8")


def text(x: float, y: float, content: str, css: str, anchor: str = "start") -> str:
    """One escaped text element."""
    anchor_attribute = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{anchor_attribute}>{escape(visible(content))}</text>'


def spread(targets: Sequence[float], low: float, high: float, gap: float = _LABEL_GAP) -> list[float]:
    """Positions near the wanted ones, in the same order, at least ``gap`` apart and, if there is room, in range."""
    order = sorted(range(len(targets)), key=lambda i: (targets[i], i))
    placed = [0.0] * len(targets)
    last = low - gap
    for i in order:
        last = placed[i] = max(targets[i], last + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def y_axis_and_grid(area: PlotArea, label: str) -> str:
    """Grid lines with round values on the left, the unit above."""
    ticks = nice_ticks(*area.y)
    return _y_axis(area, ticks, tick_labels(ticks), label)


def x_axis(area: PlotArea, label: str) -> str:
    """Round values below the plot, the unit at the right end."""
    return _x_axis(area, fitting_ticks(*area.x, area.right - area.left), label)


def mark(area: PlotArea, x: float, label: str, placer: LabelPlacer) -> str:
    """A vertical line, with a label if there is room for it; empty if the line is out of range."""
    if not area.x[0] <= x <= area.x[1]:
        return ""
    px, label = area.px(x), cut(label, int((area.right - area.left) / LETTER))
    width = len(label) * LETTER
    line = f'<path class="rule" d="M{px:.1f} {area.top:.1f}V{area.bottom:.1f}"/>'
    lefts = (px - 4 - width, px + 4) if px > (area.left + area.right) / 2 else (px + 4, px - 4 - width)
    tops = [area.bottom - 4 - LINE, area.top + 2, *(area.bottom - 4 - LINE * k for k in range(2, 6))]
    return line + _label(placer, [(left, top) for top in tops for left in lefts], label, "note")


def _label(placer: LabelPlacer, corners: Sequence[tuple[float, float]], label: str, css: str) -> str:
    """A label at the best free one of several top-left corners; empty if each would cover another label."""
    width = len(label) * LETTER
    box = placer.place([(left, top, left + width, top + LINE) for left, top in corners]) if label else None
    return "" if box is None else text(box[0], box[3] - 2.5, label, css)


def _points_drawn(area: PlotArea, series: Series) -> list[tuple[float, float]]:
    """Points along the visible parts of a series."""
    runs = [[(area.px(x), area.py(y)) for x, y in run] for run in _runs(thin(series.points, 120))]
    return [point for run in runs for part in clip(run, area.box) for point in points_along(part, 6.0)]


def _beyond(area: PlotArea, series: Sequence[Series], placer: LabelPlacer) -> str:
    """A triangle at the edge for each colour's furthest value above, and below, the axis range."""
    furthest: dict[tuple[int, bool], tuple[float, float, Series]] = {}
    for s in series:
        for x, y in s.points:
            if not is_number(y) or area.y[0] <= y <= area.y[1]:
                continue
            is_above = y > area.y[1]
            current = furthest.get((s.colour, is_above))
            if current is None or (y > current[1] if is_above else y < current[1]):
                furthest[s.colour, is_above] = x, y, s
    parts = []
    for (colour, is_above), (x, y, s) in furthest.items():
        px, edge, tip = area.px(x), *((area.top, -6) if is_above else (area.bottom, 6))
        parts.append(f'<path class="beyond s{colour}" d="M{px - 4.5:.1f} {edge:.1f}h9l-4.5 {tip}Z"/>')
        label = f"{cut(s.name, 28)}: {number(y)}"
        width = len(label) * LETTER
        tops = [edge + 3 + LINE * k if is_above else edge - 3 - LINE * (k + 1) for k in range(6)]
        lefts = (px - 7 - width, px + 7) if px > (area.left + area.right) / 2 else (px + 7, px - 7 - width)
        lefts_inside = [min(max(left, area.left), area.right - width) for left in lefts]
        parts.append(_label(placer, [(left, top) for top in tops for left in lefts_inside], label, f"end s{colour}"))
    return "".join(parts)


def cut(name: str, longest: int) -> str:
    """A name shortened to at most ``longest`` letters."""
    return name if len(name) <= longest else f"{name[: max(1, longest - 1)]}…"


def _y_axis(area: PlotArea, ticks: Sequence[float], labels: Sequence[str], label: str) -> str:
    parts = []
    for tick, name in zip(ticks, labels, strict=True):
        y = area.py(tick)
        parts.append(f'<path class="grid" d="M{area.left:.1f} {y:.1f}H{area.right:.1f}"/>')
        parts.append(text(area.left - 5, y + 3.5, name, "tick", "end"))
    if label:
        parts.append(text(2, 11, label, "unit"))
    return "".join(parts)


def _x_axis(area: PlotArea, ticks: Mapping[float, str], label: str) -> str:
    y = area.bottom
    parts = [f'<path class="axis" d="M{area.left:.1f} {y:.1f}H{area.right:.1f}"/>']
    in_row = len(label) <= _SHORT  # a short unit is in the row of values, a long one below it
    end = area.right - len(label) * 5.6 - 6 if label and in_row else math.inf
    last = -math.inf
    for tick, name in ticks.items():
        x, half = area.px(tick), len(name) * CHAR / 2
        parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>')
        if (x + half < end or x == area.left) and x - half > last:
            parts.append(text(x, y + 16, name, "tick", "middle"))
            last = x + half + 2
    if label:
        parts.append(text(area.right, y + (16 if in_row else 31), label, "unit", "end"))
    return "".join(parts)


def _rule(area: PlotArea, rule: Rule, placer: LabelPlacer) -> str:
    if not area.y[0] <= rule.y <= area.y[1]:
        return ""
    y, label = area.py(rule.y), cut(rule.label, int((area.right - area.left) / LETTER))
    width = len(label) * LETTER
    line = f'<path class="rule" d="M{area.left:.1f} {y:.1f}H{area.right:.1f}"/>'
    lefts = (area.right - 2 - width, area.left + 3, (area.left + area.right - width) / 2)
    corners = [(left, top) for left in lefts for top in (y - 1 - LINE, y + 1)]
    return line + _label(placer, corners, label, "note")


def _runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The unbroken stretches of a line."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if is_number(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(area: PlotArea, series: Series) -> str:
    parts = []
    for run in _runs(thin(series.points)):
        positions = [(area.px(x), area.py(y)) for x, y in run]
        for part in clip(positions, area.box):
            if len(part) > 1:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in part)
                parts.append(f'<path class="l {series.mark} s{series.colour}" d="M{path}"/>')
        if series.mark == "dots" or len(positions) == 1:
            visible_points = [point for point in positions if is_inside(point, area.box)]
            parts += [
                f'<circle class="d s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in visible_points
            ]
    return "".join(parts)


def band(area: PlotArea, series: Series) -> str:
    """The area between ``low`` and ``high``; a bar if only one point has both."""
    parts, run = [], []
    rows = [
        (x, low, high)
        for (x, _), low, high in zip(series.points, series.low, series.high, strict=True)
        if is_number(low) and is_number(high)
    ]
    for x, low, high in rows:
        ends = [min(max(end, area.y[0]), area.y[1]) for end in (low, high)]
        run.append((area.px(x), *map(area.py, ends)))
    if len(run) > 1:
        forth = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in run)
        back = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(run))
        parts.append(f'<path class="band s{series.colour}" d="M{forth}L{back}Z"/>')
    elif run:
        x, low, high = run[0]
        parts.append(f'<path class="l line s{series.colour}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
    return "".join(parts)


def _end_labels(area: PlotArea, series: Sequence[Series], longest: int) -> str:
    """Labels at the line ends; omitted if there are too many to stack (the legend lists them all)."""
    ends = []
    for s in series:
        runs = _runs(s.points)
        if s.label and runs:
            y = min(max(runs[-1][-1][1], area.y[0]), area.y[1])
            ends.append((s, area.py(y)))
    if (len(ends) - 1) * _LABEL_GAP > area.bottom - area.top:
        return ""
    label_ys = spread([y for _, y in ends], area.top, area.bottom)
    return "".join(
        text(area.right + 6, y + 4, cut(s.label, longest), f"end s{s.colour}")
        for (s, _), y in zip(ends, label_ys, strict=True)
    )


def _columns(
    area: PlotArea, series: Sequence[Series], xs: Sequence[float], x_label: str, names: Mapping[float, str]
) -> str:
    """Invisible strips over the plot; the one under the pointer shows its values (CSS only; titles elsewhere)."""
    chosen = _chosen_columns(series, xs)
    lookup = [dict(s.points) for s in series]
    parts = []
    for k, x in enumerate(chosen):
        left = area.left if k == 0 else area.px((chosen[k - 1] + x) / 2)
        right = area.right if k == len(chosen) - 1 else area.px((x + chosen[k + 1]) / 2)
        values_at_x = [(s, v) for s, points in zip(series, lookup, strict=True) if is_number(v := points.get(x))]
        if not values_at_x:
            continue
        place = f"{x_label} {names.get(x) or number(int(x) if x == int(x) else x)}"
        tooltip = place + "".join(f" · {s.name} {number(v)}" for s, v in values_at_x)
        values = "".join(f'<tspan class="end s{s.colour}" dx="9">{number(v)}</tspan>' for s, v in values_at_x)
        px = area.px(x)
        visible_points = [(s, area.py(v)) for s, v in values_at_x if area.y[0] <= v <= area.y[1]]
        dots = "".join(f'<circle class="d s{s.colour}" cx="{px:.1f}" cy="{y:.1f}" r="3.4"/>' for s, y in visible_points)
        parts.append(
            f'<g class="col"><rect x="{left:.1f}" y="{area.top:.0f}" width="{max(right - left, 0.1):.1f}" '
            f'height="{area.bottom - area.top:.0f}"><title>{escape(visible(tooltip))}</title></rect>'
            f'<g class="at"><path d="M{px:.1f} {area.top:.0f}V{area.bottom:.0f}"/>{dots}'
            f'<text class="read" x="2" y="11">{escape(visible(place))}{values}</text></g></g>'
        )
    return "".join(parts)


def _chosen_columns(series: Sequence[Series], xs: Sequence[float]) -> list[float]:
    if len(xs) <= _COLUMNS:
        return list(xs)
    even = {xs[round(k * (len(xs) - 1) / (_COLUMNS - 1))] for k in range(_COLUMNS)}
    sparse = {x for s in series if len(s.points) <= _COLUMNS // 2 for x, _ in s.points}
    return sorted(even | sparse)
