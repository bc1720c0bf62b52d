"""Points of a space of settings: a grid, random draws, or a Sobol sequence. Pure functions of the axes and a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from afzal.config import Axis

Values = Mapping[str, Any]
"""The settings in which an arm differs from base."""

_BLOCK = 64  # points of the Sobol sequence made at a time; a power of two keeps it balanced


def grid(axes: Sequence[Axis]) -> list[Values]:
    """Every combination, the last axis changing fastest; ranges have ``points`` evenly spaced values on their scale."""
    columns = [_levels(axis) for axis in axes]
    return [dict(zip((a.key for a in axes), values, strict=True)) for values in product(*columns)]


def _levels(axis: Axis) -> list[Any]:
    if axis.scale == "list":
        return list(axis.values)
    return [value_at(axis, k / ((axis.points or 2) - 1)) for k in range(axis.points or 2)]


def random_points(axes: Sequence[Axis], seed: int) -> Iterator[Values]:
    """Yield independent uniform draws without end; a prefix does not depend on how many are taken."""
    rng = np.random.default_rng(seed)
    while True:
        yield _point(axes, rng.random(len(axes)))


def sobol_points(axes: Sequence[Axis], seed: int) -> Iterator[Values]:
    """Yield a Sobol sequence with Owen scrambling without end; it fills a space more evenly than random draws.

    Owen 1997, Ann. Stat. 25; ``scipy.stats.qmc``.
    """
    from scipy.stats import qmc

    engine = qmc.Sobol(len(axes), scramble=True, rng=np.random.default_rng(seed))
    while True:
        yield from (_point(axes, row) for row in engine.random(_BLOCK))


def _point(axes: Sequence[Axis], place: np.ndarray) -> Values:
    return {axis.key: value_at(axis, float(u)) for axis, u in zip(axes, place, strict=True)}


def value_at(axis: Axis, u: float) -> Any:
    """The value at position ``u`` (0 to 1) of an axis: list values have equal shares, ranges follow their scale.

    Numbers of a range have four significant digits, so that a person can retype them.
    """
    if axis.scale == "list":
        return axis.values[min(int(u * len(axis.values)), len(axis.values) - 1)]
    low, high = (float(v) for v in axis.values)
    if axis.scale == "log":
        low, high = math.log(low), math.log(high)
    value = low + u * (high - low)
    return typed(axis, math.exp(value) if axis.scale == "log" else value)


def typed(axis: Axis, value: float) -> float | int:
    """A number of a range as written: four significant digits, within the ends, and an integer if the setting is
    one."""
    low, high = axis.values
    rounded = min(float(high), max(float(low), float(f"{value:.4g}")))
    return round(rounded) if axis.integer else rounded


def size(axes: Sequence[Axis]) -> int | None:
    """The number of points; None if an axis is a range."""
    if any(axis.scale != "list" for axis in axes):
        return None
    return math.prod(len(axis.values) for axis in axes)
