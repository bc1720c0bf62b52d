"""Placement in a drawing: lines clipped at the edges of the plot, and labels that do not overlap.

Boxes are (left, top, right, bottom) in SVG units, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Box = tuple[float, float, float, float]
Position = tuple[float, float]

LETTER, LINE = 6.0, 12.0  # size of a letter of a label


class LabelPlacer:
    """Places the labels of a drawing one by one.

    Args:
        bounds: the area for labels.
        marks: points that labels should not cover.
    """

    def __init__(self, bounds: Box, marks: Sequence[Position] = ()) -> None:
        self._bounds, self._marks = bounds, marks
        self._taken: list[Box] = []

    def place(self, candidates: Sequence[Box]) -> Box | None:
        """Take the place that covers the fewest marks (the first of equals) among those that cover no other label;
        None if there is no such place."""
        free = [box for box in candidates if not any(overlap_area(box, placed) for placed in self._taken)]
        if not free:
            return None
        self._taken.append(box := min(free, key=self._cost))
        return box

    def _cost(self, box: Box) -> float:
        left, top, right, bottom = box
        hits = sum(left - 1 <= x <= right + 1 and top <= y <= bottom for x, y in self._marks)
        low = max(0.0, self._bounds[0] - left) + max(0.0, self._bounds[1] - top)
        high = max(0.0, right - self._bounds[2]) + max(0.0, bottom - self._bounds[3])
        return 8 * hits + 100 * (low + high)


def overlap_area(a: Box, b: Box) -> float:
    """The overlapping area of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def points_along(line: Sequence[Position], gap: float = 4.0) -> list[Position]:
    """Points along a line, close enough that no label fits between two of them."""
    points = list(line[:1])
    for (x0, y0), (x1, y1) in pairwise(line):
        count = max(1, int((abs(x1 - x0) + abs(y1 - y0)) / gap))
        points += [(x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count) for k in range(1, count + 1)]
    return points


def is_inside(point: Position, box: Box, slack: float = 0.01) -> bool:
    """Whether a point is in a box, including its edges."""
    x, y = point
    return box[0] - slack <= x <= box[2] + slack and box[1] - slack <= y <= box[3] + slack


def clip(line: Sequence[Position], box: Box) -> list[list[Position]]:
    """The parts of a line inside a box, each ending at the edge where it leaves; a single point is kept."""
    if len(line) == 1:
        return [list(line)] if is_inside(line[0], box) else []
    parts: list[list[Position]] = []
    for a, b in pairwise(line):
        segment = _clip_segment(a, b, box)
        if segment is None:
            continue
        if parts and parts[-1][-1] == segment[0] == a:
            parts[-1].append(segment[1])
        else:
            parts.append(list(segment))
    return parts


def _clip_segment(a: Position, b: Position, box: Box) -> tuple[Position, Position] | None:
    """The part of a segment inside a box (Liang and Barsky 1984); ends inside the box are returned unchanged."""
    start, end = 0.0, 1.0
    dx, dy = b[0] - a[0], b[1] - a[1]
    for step, distance in ((-dx, a[0] - box[0]), (dx, box[2] - a[0]), (-dy, a[1] - box[1]), (dy, box[3] - a[1])):
        if step == 0:
            if distance < -0.01:
                return None
        elif step < 0:
            start = max(start, distance / step)
        else:
            end = min(end, distance / step)
    if start > end:
        return None
    first = a if start <= 0 else (a[0] + start * dx, a[1] + start * dy)
    return first, b if end >= 1 else (a[0] + end * dx, a[1] + end * dy)
