"""Extra sections of a report, as data.

A section holds words and numbers, never markup: the page escapes text, and charts are drawn here from their points. So
nothing from a run folder or a caller can put HTML into the page, and there is no trusted-HTML path to guard. Sections
are stored in ``sections.json`` next to the metrics, from which ``afzal report`` shows them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afzal.report import svg
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.phone_layout import PHONE
from afzal.report.svg import Rule, Series
from afzal.runs import atomic_write
from afzal.text import is_number, number

FILE = "sections.json"
_MARKS = ("line", "faint", "dots", "dashed")


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over ``x_label``; see :class:`afzal.report.svg.Series`."""

    series: tuple[Series, ...]
    x_label: str = "step"
    y_label: str = ""
    rules: tuple[Rule, ...] = ()

    def draw(self, title: str, width: int = 560) -> str:
        return svg.line_chart(
            self.series,
            title=title,
            x_label=self.x_label,
            y_label=self.y_label,
            rules=self.rules,
            width=width,
            height=300,
        )


@dataclass(frozen=True, slots=True)
class FrontierChart:
    """Policies (KL, reward) under the curve of the optimum; ``paths`` are policies over training."""

    points: tuple[PolicyPoint, ...]
    optimum: tuple[tuple[float, float], ...] = ()
    paths: tuple[Series, ...] = ()
    x_label: str = "KL to the reference, nats"
    y_label: str = "expected reward"
    optimum_label: str = "optimum"

    def draw(self, title: str, width: int = 440) -> str:
        return frontier_svg(
            self.points,
            self.optimum,
            paths=self.paths,
            title=title,
            x_label=self.x_label,
            y_label=self.y_label,
            optimum_label=self.optimum_label,
            size=(width, 330),
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells: numbers are right-aligned with a sensible number of digits, everything else is text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Rows of (text, whether it is a number)."""
        return [[(number(c) if is_number(c) or c is None else str(c), is_number(c)) for c in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the report: paragraphs (separated by blank lines), then a chart, then a table."""

    title: str
    text: str = ""
    chart: LineChart | FrontierChart | None = None
    table: Table | None = None

    def paragraphs(self) -> list[str]:
        return [p.strip() for p in self.text.split("\n\n") if p.strip()]

    def svg(self) -> str:
        """The drawing, or an empty string; every word in it is escaped."""
        return self.chart.draw(self.title) if self.chart else ""

    def on_a_phone(self) -> str:
        """The drawing at phone width."""
        return self.chart.draw(self.title, PHONE) if self.chart else ""


def write(folder: Path, sections: Sequence[Section]) -> None:
    """Store the sections with the run, so that its report can be rebuilt."""
    body = json.dumps({"sections": [to_json(s) for s in sections]}, indent=1, allow_nan=False)
    atomic_write(folder / FILE, body + "\n")


def read(folder: Path) -> list[Section]:
    """The sections stored with the run, in order; empty without the file.

    Raises:
        ValueError: the file does not hold sections; the message says what is wrong.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        body = json.loads(path.read_text("utf-8"))
        return [from_json(entry) for entry in body["sections"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE} does not hold report sections: {type(error).__name__} {error}") from error


def to_json(section: Section) -> dict[str, Any]:
    """A section as plain values."""
    entry: dict[str, Any] = {"title": section.title, "text": section.text}
    if isinstance(section.chart, FrontierChart):
        chart = section.chart
        entry["chart"] = {
            "kind": "frontier",
            "points": [{k: getattr(p, k) for k in PolicyPoint.__slots__} for p in chart.points],
            "optimum": [list(p) for p in chart.optimum],
            "series": [_series_to_json(s) for s in chart.paths],
            "x_label": chart.x_label,
            "y_label": chart.y_label,
            "optimum_label": chart.optimum_label,
        }
    elif section.chart:
        entry["chart"] = {
            "kind": "line",
            "series": [_series_to_json(s) for s in section.chart.series],
            "rules": [{"y": r.y, "label": r.label} for r in section.chart.rules],
            "x_label": section.chart.x_label,
            "y_label": section.chart.y_label,
        }
    if section.table:
        entry["table"] = {"columns": list(section.table.columns), "rows": [list(r) for r in section.table.rows]}
    return entry


def from_json(entry: Mapping[str, Any]) -> Section:
    """The inverse of :func:`to_json`; every field is converted to its type, unknown fields are ignored."""
    chart, table = entry.get("chart"), entry.get("table")
    return Section(
        title=str(entry["title"]),
        text=str(entry.get("text", "")),
        chart=_chart(chart) if chart else None,
        table=Table(tuple(map(str, table["columns"])), tuple(tuple(map(_cell, row)) for row in table["rows"]))
        if table
        else None,
    )


def _chart(entry: Mapping[str, Any]) -> LineChart | FrontierChart:
    series = tuple(_series(s) for s in entry.get("series", ()))
    if entry["kind"] == "line":
        rules = tuple(Rule(_real(r["y"]), str(r["label"])) for r in entry.get("rules", ()))
        return LineChart(series, str(entry.get("x_label", "step")), str(entry.get("y_label", "")), rules)
    if entry["kind"] != "frontier":
        raise ValueError(f"chart kind {entry['kind']!r} is not one of 'line', 'frontier'")
    return FrontierChart(
        points=tuple(_policy_point(p) for p in entry.get("points", ())),
        optimum=tuple((_real(x), _real(y)) for x, y in entry.get("optimum", ())),
        paths=series,
        x_label=str(entry.get("x_label", "KL to the reference, nats")),
        y_label=str(entry.get("y_label", "expected reward")),
        optimum_label=str(entry.get("optimum_label", "optimum")),
    )


def _policy_point(entry: Mapping[str, Any]) -> PolicyPoint:
    errors = {k: _real(entry[k]) for k in ("x_se", "y_se") if k in entry}
    return PolicyPoint(str(entry["label"]), _real(entry["x"]), _real(entry["y"]), colour=_colour(entry), **errors)


def _series(entry: Mapping[str, Any]) -> Series:
    points = tuple((_real(x), y if is_number(y) else None) for x, y in entry["points"])
    low, high = (tuple(v if is_number(v) else None for v in entry.get(k, ())) for k in ("low", "high"))
    if (low or high) and not len(low) == len(high) == len(points):
        raise ValueError(f"series {entry['name']!r} has {len(points)} points but a band of {len(low)} and {len(high)}")
    mark = entry.get("mark", "line")
    if mark not in _MARKS:
        raise ValueError(f"mark {mark!r} is not one of {_MARKS}")
    return Series(str(entry["name"]), points, _colour(entry), mark, low, high, str(entry.get("label", "")))


def _series_to_json(series: Series) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": series.name, "points": [list(p) for p in series.points]}
    entry |= {"colour": series.colour, "mark": series.mark, "label": series.label}
    return entry | ({"low": list(series.low), "high": list(series.high)} if series.low else {})


def _colour(entry: Mapping[str, Any]) -> int:
    return int(entry.get("colour", svg.CHOSEN)) % svg.LAST


def _real(value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _cell(value: Any) -> str | float | int | None:
    return value if value is None or is_number(value) else str(value)
