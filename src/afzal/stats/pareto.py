"""The best policies for their cost: Pareto front, hypervolume and knee.

Pure functions of arrays. A smaller cost (a KL in nats) and a larger value (a reward, a win rate, an accuracy) are
better. N points, in any order; a point with a NaN or an infinity is unknown and never counts.
"""

from __future__ import annotations

import numpy as np


def on_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """``[N]`` bool: the points that no other point dominates, in O(N log N).

    A point dominates another one if its cost is no higher and its value no lower, and they differ in one of the two. So
    equal points are on the front together (Deb 2001, Multi-Objective Optimization, definition 2.5).

    Raises:
        ValueError: the arrays differ in length.
    """
    costs, values, known = _points(cost, value)
    front = np.zeros(len(costs), bool)
    places = np.flatnonzero(known)
    newest, best = None, -np.inf
    for place in places[np.lexsort((-values[places], costs[places]))]:
        point = (costs[place], values[place])
        if values[place] > best or point == newest:  # equal points are neighbours in this order
            front[place], newest, best = True, point, values[place]
    return front


def hypervolume(cost: np.ndarray, value: np.ndarray, *, reference: tuple[float, float]) -> float:
    """The area between the front and a reference point, in units of cost times value; larger is better.

    It is the part of the plane that some point dominates, up to the reference point (Zitzler and Thiele 1999, IEEE
    Trans. Evol. Comput. 3); 0 if no point is better than the reference in both.

    Args:
        reference: cost and value of the reference point, such as the largest allowed cost and the value at no cost.
    """
    costs, values, _ = _points(cost, value)
    most, least = reference
    inside = on_front(costs, values) & (costs < most) & (values > least)
    steps = sorted(set(zip(costs[inside].tolist(), values[inside].tolist(), strict=True)))
    ends = [*(c for c, _ in steps[1:]), most][: len(steps)]
    return float(sum((end - c) * (v - least) for (c, v), end in zip(steps, ends, strict=True)))


def knee(cost: np.ndarray, value: np.ndarray) -> int | None:
    """The index of the front's point farthest above the chord between its two ends, each axis scaled to the ends.

    Beyond it, additional cost buys less value than on average (Das 1999, Structural Optimization 18). Of equal points
    the cheapest is taken. None if no point of the front is above the chord, as with fewer than three points.
    """
    costs, values, _ = _points(cost, value)
    places = np.flatnonzero(on_front(costs, values))
    places = places[np.argsort(costs[places], kind="stable")]
    if len(places) < 3 or costs[places[0]] == costs[places[-1]]:
        return None
    x, y = ((a[places] - a[places[0]]) / (a[places[-1]] - a[places[0]]) for a in (costs, values))
    above = y - x  # the distance to the chord times the square root of 2
    return int(places[above.argmax()]) if above.max() > 1e-12 else None


def _points(cost: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    costs, values = (np.asarray(a, np.float64).reshape(-1) for a in (cost, value))
    if len(costs) != len(values):
        raise ValueError(f"{len(costs)} costs and {len(values)} values do not make points")
    return costs, values, np.isfinite(costs) & np.isfinite(values)
