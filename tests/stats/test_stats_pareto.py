"""Pareto front, hypervolume and knee against definitions by brute force, with ties, NaN and infinities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from afzal.stats.pareto import hypervolume, knee, on_front


def random_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 30 points on a coarse grid, so that costs, values and whole points coincide, some of them unknown."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 31))
    levels = int(rng.integers(1, 9))
    points = rng.integers(0, levels, size=(2, n)).astype(float) / 2
    points[rng.random((2, n)) < 0.08] = rng.choice([math.nan, math.inf, -math.inf])
    return points[0], points[1]


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def brute_force(cost: np.ndarray, value: np.ndarray) -> list[bool]:
    points = list(zip(cost.tolist(), value.tolist(), strict=True))
    known = [math.isfinite(c) and math.isfinite(v) for c, v in points]
    return [
        here and not any(there and dominates(q, p) for q, there in zip(points, known, strict=True))
        for p, here in zip(points, known, strict=True)
    ]


def test_the_front_is_that_of_all_comparisons_on_a_thousand_sets_with_ties_and_unknown_points():
    several = twins = unknown = 0
    for seed in range(1000):
        cost, value = random_points(seed)
        front = on_front(cost, value)
        assert front.tolist() == brute_force(cost, value), seed
        points = list(zip(cost[front].tolist(), value[front].tolist(), strict=True))
        several += len(set(points)) > 1
        twins += len(set(points)) < len(points)
        unknown += bool(len(cost) and not np.isfinite(cost).all())
    assert min(several, twins, unknown) > 100  # the sets do contain the cases under test


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_points_does_not_matter(seed):
    cost, value = random_points(seed)
    order = np.random.default_rng(seed).permutation(len(cost))
    assert on_front(cost[order], value[order]).tolist() == on_front(cost, value)[order].tolist()
    assert hypervolume(cost[order], value[order], reference=(3, 0)) == hypervolume(cost, value, reference=(3, 0))


def test_hypervolume_counts_the_cells_of_the_grid_that_a_point_dominates():
    """Points lie on a grid of halves, so the area is the number of its cells whose corners a point dominates."""
    for seed in range(300):
        cost, value = random_points(seed)
        points = [
            (c, v) for c, v in zip(cost.tolist(), value.tolist(), strict=True) if math.isfinite(c) and math.isfinite(v)
        ]
        cells = sum(any(c <= x / 2 and v >= (y + 1) / 2 for c, v in points) for x in range(6) for y in range(10))
        assert hypervolume(cost, value, reference=(3.0, 0.0)) == pytest.approx(cells / 4), seed


def test_hypervolume_by_hand():
    cost, value = np.array([1.0, 2.0, 2.5, math.nan, 9.0]), np.array([1.0, 3.0, 2.0, 9.0, 9.0])
    assert (
        hypervolume(cost, value, reference=(4.0, 0.5)) == 1 * 0.5 + 2 * 2.5
    )  # 1 to 2 at height .5, 2 to 4 at height 2.5
    assert hypervolume(cost, value, reference=(1.0, 0.0)) == 0.0
    assert hypervolume(np.array([]), np.array([]), reference=(1.0, 0.0)) == 0.0


def test_the_knee_is_the_largest_distance_to_the_chord():
    """Distances by the formula of a point and a line, over every point of the front."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        cost = rng.random(12)
        value = np.sqrt(cost) + 0.2 * rng.random(12)
        place = knee(cost, value)
        front = np.flatnonzero(on_front(cost, value))
        front = front[np.argsort(cost[front])]
        x, y = ((a[front] - a[front[0]]) / (a[front[-1]] - a[front[0]]) for a in (cost, value))
        distances = (y - x) / math.sqrt(2)
        if len(front) < 3 or distances.max() <= 1e-12:
            assert place is None
        else:
            assert place == front[distances.argmax()]


def test_the_knee_of_a_corner_and_where_there_is_none():
    assert knee(np.array([0.0, 1.0, 4.0]), np.array([0.0, 3.0, 4.0])) == 1
    assert knee(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0])) is None  # a straight front has no knee
    assert knee(np.array([0.0, 3.0, 4.0]), np.array([0.0, 1.0, 4.0])) is None  # one that sags has none either
    assert knee(np.array([1.0]), np.array([1.0])) is None
    assert knee(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0])) is None


def test_costs_and_values_belong_together():
    with pytest.raises(ValueError, match="3 costs and 2 values"):
        on_front(np.zeros(3), np.zeros(2))
