"""Reward against KL: the gain and cost of each policy, and the best that any policy could reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afzal.report import svg
from afzal.report.geometry import LETTER, LINE, Box, LabelPlacer, clip, is_inside, points_along
from afzal.report.svg import OPTIMUM, PlotArea, Series
from afzal.report.value_range import shown_range
from afzal.stats.intervals import half_width
from afzal.text import is_number

_WIDTH, _HEIGHT = 440, 330
_LONGEST = 34  # letters of a label


@dataclass(frozen=True, slots=True)
class PolicyPoint:
    """One policy: KL to the reference in nats (``x``), expected reward (``y``), standard errors if estimated."""

    label: str
    x: float
    y: float
    x_se: float = 0.0
    y_se: float = 0.0
    colour: int = svg.CHOSEN


def frontier_svg(
    points: Sequence[PolicyPoint],
    optimum: Sequence[tuple[float, float]],
    *,
    paths: Sequence[Series] = (),
    title: str = "reward against KL",
    x_label: str = "KL to the reference, nats",
    y_label: str = "expected reward",
    optimum_label: str = "optimum",
    limit: tuple[float, str] | None = None,
    size: tuple[int, int] = (_WIDTH, _HEIGHT),
) -> str:
    """A scatter plot of policies under the curve of the best reward at each KL.

    Without a curve, a stray policy or path does not flatten the others
    (:func:`afzal.report.value_range.robust_range`): it is cut at the edge, and a policy beyond is marked there with its
    values.

    Args:
        points: policies with labels; crosses are 95% intervals, if standard errors are given.
        optimum: the curve (KL, reward), in order of KL; the region above it is shaded, since no policy can be there.
        paths: policies over training, their points in order of steps, optionally with a band.
        limit: a KL with a label, drawn as a vertical line.
        size: width and height in SVG units.
    """
    xs = [_ends(p.x, p.x_se) for p in points] + [[x for x, _ in s.points] for s in paths]
    ys = [_ends(p.y, p.y_se) for p in points] + [[*(y for _, y in s.points), *s.low, *s.high] for s in paths]
    xs, ys = ([v for g in groups for v in g] if optimum else shown_range(groups) for groups in (xs, ys))
    xs = [*xs, *(x for x, _ in optimum), *([limit[0]] if limit else [])]
    ys = [*ys, *(y for _, y in optimum)]
    width, height = size
    x_low, x_high = svg.domain(xs)
    area = PlotArea(
        left=44,
        top=24,
        right=width - 14,
        bottom=height - 40,
        x=(min(0.0, x_low) if x_low > 0 or min(xs, default=0) < 0 else 0.0, x_high),
        y=svg.domain(ys, pad=0.09),
    )
    curve = [(area.px(x), area.py(y)) for x, y in optimum]
    marks = [_clamped_position(area, p) for p in points] + points_along(curve)
    placer = LabelPlacer(
        area.box, marks + [m for s in paths for part in _visible_parts(area, s) for m in points_along(part)]
    )
    body = [
        svg.y_axis_and_grid(area, y_label),
        svg.x_axis(area, x_label),
        _optimum(area, curve, optimum_label),
        *(svg.band(area, s) for s in paths if s.low),
        *(_path(area, s) for s in paths),
        *(_cross(area, p) for p in points),
        *(_point_mark(area, p) for p in points),
        _labels(area, points, placer),
        svg.mark(area, *limit, placer) if limit else "",
    ]
    return svg.wrap("".join(body), width, height, title)


def _optimum(area: PlotArea, curve: Sequence[tuple[float, float]], label: str) -> str:
    if len(curve) < 2:
        return ""
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in curve)
    last_x, last_y = curve[-1]
    shade = f"M{line}V{area.top:.1f}H{curve[0][0]:.1f}Z"
    return (
        f'<path class="never" d="{shade}"/><path class="l line s{OPTIMUM}" d="M{line}"/>'
        + svg.text(last_x - 2, last_y - 7, label, f"end s{OPTIMUM}", "end")
        + svg.text((curve[0][0] + last_x) / 2 - 60, area.top + 14, "no policy can be here", "note")
    )


def _visible_parts(area: PlotArea, series: Series) -> list[list[tuple[float, float]]]:
    """The visible parts of a path, cut at the edges."""
    path = [(area.px(x), area.py(y)) for x, y in series.points if is_number(y)]
    return clip(path, area.box)


def _path(area: PlotArea, series: Series) -> str:
    lines = [part for part in _visible_parts(area, series) if len(part) > 1]
    paths = ["L".join(f"{x:.1f} {y:.1f}" for x, y in part) for part in lines]
    positions = [(area.px(x), area.py(y)) for x, y in series.points if is_number(y)]
    visible_points = [point for point in positions if is_inside(point, area.box)] if series.mark != "faint" else []
    dots = "".join(f'<circle class="d s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in visible_points)
    return "".join(f'<path class="l {series.mark} s{series.colour}" d="M{line}"/>' for line in paths) + dots


def _clamped_position(area: PlotArea, point: PolicyPoint) -> tuple[float, float]:
    """The position of a policy; one beyond the axes is placed at their edge."""
    x, y = area.px(point.x), area.py(point.y)
    return min(max(x, area.left), area.right), min(max(y, area.top), area.bottom)


def _is_beyond(area: PlotArea, point: PolicyPoint) -> bool:
    return not is_inside((area.px(point.x), area.py(point.y)), area.box)


def _ends(value: float, se: float) -> tuple[float, float]:
    return value - half_width(se), value + half_width(se)


def _cross(area: PlotArea, point: PolicyPoint) -> str:
    if _is_beyond(area, point):
        return ""
    parts = []
    if point.x_se > 0:
        ends = [area.px(x) for x in _ends(point.x, point.x_se)]
        parts.append(f"M{ends[0]:.1f} {area.py(point.y):.1f}H{ends[1]:.1f}")
    if point.y_se > 0:
        ends = [area.py(y) for y in _ends(point.y, point.y_se)]
        parts.append(f"M{area.px(point.x):.1f} {ends[0]:.1f}V{ends[1]:.1f}")
    return f'<path class="l line s{point.colour}" d="{"".join(parts)}"/>' if parts else ""


def _point_mark(area: PlotArea, point: PolicyPoint) -> str:
    name = svg.escape(svg.visible(f"{point.label}: KL {svg.number(point.x)}, reward {svg.number(point.y)}"))
    x, y = _clamped_position(area, point)
    centre = f'cx="{x:.1f}" cy="{y:.1f}"'
    shape = f'<circle class="d s{point.colour}" {centre} r="4"/>'
    if _is_beyond(area, point):  # a triangle that points out of the plot
        dx, dy = (x >= area.right) - (x <= area.left), (y >= area.bottom) - (y <= area.top)
        tip, side = (x + 7 * dx, y + 7 * dy), (4.5 * dy, -4.5 * dx)
        ends = f"M{x + side[0]:.1f} {y + side[1]:.1f}L{x - side[0]:.1f} {y - side[1]:.1f}L{tip[0]:.1f} {tip[1]:.1f}Z"
        shape = f'<path class="beyond s{point.colour}" d="{ends}"/>'
    return f'<g class="spot">{shape}<circle class="hit" {centre} r="12"><title>{name}</title></circle></g>'


def _labels(area: PlotArea, points: Sequence[PolicyPoint], placer: LabelPlacer) -> str:
    """Labels next to their points, each at the one of eight places that covers the least. A label that would cover
    another one is omitted: the legend and the tooltip have it."""
    parts = []
    for point in points:
        label = svg.cut(point.label, _LONGEST)
        if _is_beyond(area, point):
            label += f" ({svg.number(point.x, 3)}, {svg.number(point.y, 3)})"
        (x, y), width = _clamped_position(area, point), len(label) * LETTER
        boxes = _label_boxes(x, y, width)
        if _is_beyond(area, point):  # the places next to the edge are often taken
            boxes += [(x - 6 - width, top, x - 6, top + LINE) for k in range(2, 6) for top in (y - 5 - LINE * k,)]
        box = placer.place(boxes)
        if box is not None:
            parts.append(svg.text(box[0], box[3] - 3, label, f"end s{point.colour}"))
    return "".join(parts)


def _label_boxes(x: float, y: float, width: float) -> list[Box]:
    """Boxes (left, top, right, bottom) around a point: right, left, below, above, then the corners."""
    lefts = [x + 8, x - 8 - width, x - width / 2, x - width / 2, x + 6, x - 6 - width, x + 6, x - 6 - width]
    tops = [y - 6, y - 6, y + 7, y - 7 - LINE, y + 5, y + 5, y - 5 - LINE, y - 5 - LINE]
    return [(left, top, left + width, top + LINE) for left, top in zip(lefts, tops, strict=True)]
