"""A forest plot: figures with intervals, one per row, and a line at the value of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afzal.report import svg
from afzal.report.svg import PlotArea
from afzal.text import interval, number

_ROW, _LETTER, _TOP, _BOTTOM = 26, 6.4, 10, 40
_LONGEST = 34  # letters of a name at most
_NARROW, _STACKED = 480, 40  # below this width, names are above their lines, in rows of this height


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A named figure; ``low`` and ``high`` are None if its interval is unknown."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def forest_svg(
    rows: Sequence[ForestRow], *, x_label: str, title: str, rule: float | None = None, width: int = 680
) -> str:
    """Draw one row per figure: a dot, and a line for its 95% interval.

    Args:
        rule: the value of no difference, drawn as a vertical line.
        width: in SVG units; at phone width, names are above their lines.
    """
    names = [row.name if len(row.name) <= _LONGEST else row.name[: _LONGEST - 1] + "…" for row in rows]
    above = width < _NARROW
    left = 6 if above else 16 + _LETTER * max(map(len, names), default=0)
    step = _STACKED if above else _ROW
    height = _TOP + step * len(rows) + _BOTTOM
    ends = [x for row in rows for x in (row.value, row.low, row.high)] + [rule]
    area = PlotArea(left, _TOP, width - 12, height - _BOTTOM, svg.domain(ends), (0.0, 1.0))
    parts = [_ticks(area, x_label)]
    if rule is not None:
        parts.append(f'<path class="rule" d="M{area.px(rule):.1f} {_TOP}V{area.bottom:.1f}"/>')
    for k, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = _TOP + step * (k + 0.5) + (8 if above else 0)
        label = (0.0, y - 12, name, "read", "start") if above else (area.left - 10, y + 4, name, "read", "end")
        parts.append(svg.text(*label) + _row(area, row, y))
    return svg.wrap("".join(parts), width, height, title)


def _ticks(area: PlotArea, label: str) -> str:
    ticks = svg.nice_ticks(*area.x)
    lines = "".join(f"M{area.px(t):.1f} {area.top:.1f}V{area.bottom:.1f}" for t in ticks)
    labels = [
        svg.text(area.px(t), area.bottom + 16, tick_label, "", "middle")
        for t, tick_label in zip(ticks, svg.tick_labels(ticks), strict=True)
    ]
    middle = (area.left + area.right) / 2
    return (
        f'<path class="grid" d="{lines}"/>' + "".join(labels) + svg.text(middle, area.bottom + 33, label, "", "middle")
    )


def _row(area: PlotArea, row: ForestRow, y: float) -> str:
    tooltip = f"{row.name}: {number(row.value)}"
    line = ""
    if row.low is not None and row.high is not None:
        line = f'<path class="l s2" d="M{area.px(row.low):.1f} {y:.1f}H{area.px(row.high):.1f}"/>'
        tooltip += f" {interval(row.low, row.high)}"
    tip = svg.escape(svg.visible(tooltip))
    return line + f'<circle class="d s2" cx="{area.px(row.value):.1f}" cy="{y:.1f}" r="4"><title>{tip}</title></circle>'
