"""Reward against KL: what each policy gained, what it paid, and the best that any policy could have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from afzal.report import svg
from afzal.report.svg import OPTIMUM, Frame, Series
from afzal.stats.intervals import half_width

_WIDTH, _HEIGHT = 440, 330
_LETTER, _LINE = 6.0, 12.0  # size of a letter of a label, in SVG units

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Spot:
    """One policy: KL to the reference in nats (``x``), expected reward (``y``), standard errors when estimated."""

    label: str
    x: float
    y: float
    x_se: float = 0.0
    y_se: float = 0.0
    colour: int = svg.CHOSEN


def frontier_svg(
    points: Sequence[Spot],
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
    """A scatter of policies under the curve of the best reward at each KL.

    Args:
        points: policies with labels; crosses are 95 % intervals, where standard errors are given.
        optimum: the curve (KL, reward), in order of KL; the region above it is shaded, since no policy can be there.
        paths: the way of a policy through training, its points in order of step, with a band where it has one.
        limit: a KL with a label, drawn as a vertical line.
        size: width and height in SVG units.
    """
    xs = (
        [x for p in points for x in _ends(p.x, p.x_se)]
        + [x for x, _ in optimum]
        + [x for s in paths for x, _ in s.points]
        + ([limit[0]] if limit else [])
    )
    ys = (
        [y for p in points for y in _ends(p.y, p.y_se)]
        + [y for _, y in optimum]
        + [y for s in paths for _, y in s.points if y is not None]
    )
    ys += [y for s in paths for y in (*s.low, *s.high) if y is not None]
    width, height = size
    x_low, x_high = svg.domain(xs)
    frame = Frame(
        left=44,
        top=24,
        right=width - 14,
        bottom=height - 40,
        x=(min(0.0, x_low) if x_low > 0 or min(xs, default=0) < 0 else 0.0, x_high),
        y=svg.domain(ys, pad=0.09),
    )
    curve = [(frame.px(x), frame.py(y)) for x, y in optimum]
    body = [
        svg.y_axis_and_grid(frame, y_label),
        svg.x_axis(frame, x_label),
        _optimum(frame, curve, optimum_label),
        svg.mark(frame, *limit) if limit else "",
        *(svg.band(frame, s) for s in paths if s.low),
        *(_path(frame, s) for s in paths),
        *(_cross(frame, p) for p in points),
        *(_spot(frame, p) for p in points),
        _labels(frame, points, curve, paths),
    ]
    return svg.wrap("".join(body), width, height, title)


def _optimum(frame: Frame, curve: Sequence[tuple[float, float]], label: str) -> str:
    if len(curve) < 2:
        return ""
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in curve)
    last_x, last_y = curve[-1]
    shade = f"M{line}V{frame.top:.1f}H{curve[0][0]:.1f}Z"
    return (
        f'<path class="never" d="{shade}"/><path class="l line s{OPTIMUM}" d="M{line}"/>'
        + svg.text(last_x - 2, last_y - 7, label, f"end s{OPTIMUM}", "end")
        + svg.text((curve[0][0] + last_x) / 2 - 60, frame.top + 14, "no policy can be here", "note")
    )


def _path(frame: Frame, series: Series) -> str:
    at = [(frame.px(x), frame.py(y)) for x, y in series.points if y is not None]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dots = "".join(f'<circle class="d s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in at)
    return (f'<path class="l {series.mark} s{series.colour}" d="M{line}"/>' if len(at) > 1 else "") + dots


def _ends(value: float, se: float) -> tuple[float, float]:
    return value - half_width(se), value + half_width(se)


def _cross(frame: Frame, spot: Spot) -> str:
    parts = []
    if spot.x_se > 0:
        ends = [frame.px(x) for x in _ends(spot.x, spot.x_se)]
        parts.append(f"M{ends[0]:.1f} {frame.py(spot.y):.1f}H{ends[1]:.1f}")
    if spot.y_se > 0:
        ends = [frame.py(y) for y in _ends(spot.y, spot.y_se)]
        parts.append(f"M{frame.px(spot.x):.1f} {ends[0]:.1f}V{ends[1]:.1f}")
    return f'<path class="l line s{spot.colour}" d="{"".join(parts)}"/>' if parts else ""


def _spot(frame: Frame, spot: Spot) -> str:
    name = svg.escape(svg.visible(f"{spot.label}: KL {svg.number(spot.x)}, reward {svg.number(spot.y)}"))
    at = f'cx="{frame.px(spot.x):.1f}" cy="{frame.py(spot.y):.1f}"'
    return (
        f'<g class="spot"><circle class="d s{spot.colour}" {at} r="4"/>'
        f'<circle class="hit" {at} r="12"><title>{name}</title></circle></g>'
    )


def _labels(frame: Frame, points: Sequence[Spot], curve: Sequence[tuple[float, float]], paths: Sequence[Series]) -> str:
    """Labels beside their points, each at the free one of eight places that covers least of what is drawn."""
    spots = [(frame.px(p.x), frame.py(p.y)) for p in points]
    marks = [*spots, *_dense(curve)]
    marks += [m for s in paths for m in _dense([(frame.px(x), frame.py(y)) for x, y in s.points if y is not None])]
    taken: list[Box] = []
    parts = []
    for spot, (x, y) in zip(points, spots, strict=True):
        box = min(_places(x, y, len(spot.label) * _LETTER), key=lambda b: _cost(b, frame, taken, marks))
        taken.append(box)
        parts.append(svg.text(box[0], box[3] - 3, spot.label, f"end s{spot.colour}"))
    return "".join(parts)


def _places(x: float, y: float, width: float) -> list[Box]:
    """Boxes (left, top, right, bottom) round a point: right, left, below, above, then the corners."""
    lefts = [x + 8, x - 8 - width, x - width / 2, x - width / 2, x + 6, x - 6 - width, x + 6, x - 6 - width]
    tops = [y - 6, y - 6, y + 7, y - 7 - _LINE, y + 5, y + 5, y - 5 - _LINE, y - 5 - _LINE]
    return [(left, top, left + width, top + _LINE) for left, top in zip(lefts, tops, strict=True)]


def _cost(box: Box, frame: Frame, taken: Sequence[Box], marks: Sequence[tuple[float, float]]) -> float:
    left, top, right, bottom = box
    over = sum(_overlap(box, other) for other in taken)
    hits = sum(left - 1 <= x <= right + 1 and top <= y <= bottom for x, y in marks)
    outside = max(0.0, frame.left - left) + max(0.0, right - frame.right) + max(0.0, frame.top - top)
    return 10 * over + 8 * hits + 100 * (outside + max(0.0, bottom - frame.bottom))


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _dense(line: Sequence[tuple[float, float]], gap: float = 4.0) -> list[tuple[float, float]]:
    """Points along a line, close enough that a label cannot slip between two of them."""
    dense = list(line[:1])
    for (x0, y0), (x1, y1) in pairwise(line):
        count = max(1, int((abs(x1 - x0) + abs(y1 - y0)) / gap))
        dense += [(x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count) for k in range(1, count + 1)]
    return dense
