"""95% intervals of a proportion, of a mean over clusters and of a mean over seeds. Pure functions of numbers.

A cluster is a prompt with all its rows. Rows of a cluster may depend on each other in any way; clusters are
independent. Values are in the caller's units.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from statistics import NormalDist

LEVEL = 0.95
_MANY_DF = 1000
Z95 = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""

_BISECTIONS = 60  # halve the unit interval down to the precision of doubles


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95% interval; ``low`` and ``high`` are None if it is unknown.

    ``n`` counts the independent units: seeds, prompts, or unrelated rows.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high.

        Raises:
            ValueError: they are unknown.
        """
        if self.low is None or self.high is None:
            raise ValueError("a single value has no interval")
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Cluster:
    """Sums over the rows of one prompt: ``total`` of weight times value, ``weight`` of weights, ``square`` of squared
    weights. Clusters of parts of the data add up field by field."""

    total: float
    weight: float
    square: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, ``total`` over ``count``; ``se`` is its standard error over ``prompts`` prompts, NaN for a single one.
    ``stated`` is its 95% interval if a better one than the standard error's is known."""

    total: float
    count: float
    se: float
    prompts: int = 0
    stated: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """The mean, in the units of the values."""
        return self.total / self.count

    @property
    def ends(self) -> tuple[float, float]:
        """The 95% interval: ``stated``, else Student's t over the prompts, or normal if their number is unknown; the
        mean twice if its error is unknown."""
        if self.stated is not None:
            return self.stated
        if not math.isfinite(self.se):
            return self.mean, self.mean
        margin = self.se * (t95(self.prompts - 1) if self.prompts > 1 else Z95)
        return self.mean - margin, self.mean + margin


def half_width(se: float) -> float:
    """Half of the 95% interval of a figure with standard error ``se``, by the normal distribution."""
    return Z95 * se


def wilson(hits: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent rows: (low, high); (0, 1) when nothing was observed.

    Wilson 1927; unlike p ± z·se it stays within [0, 1] and keeps its coverage for small n and extreme p.

    Args:
        hits: number of hits among ``n``; ties are half hits.
        n: number of independent rows; for rows that share prompts, see :func:`share`.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = hits / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    margin = z * math.sqrt(max(0.0, p * (1 - p)) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # exact at the ends, where rounding would give 5e-17
    return 0.0 if p <= 0 else max(0.0, centre - margin), 1.0 if p >= 1 else min(1.0, centre + margin)


def clustered(keys: Iterable[Hashable], values: Iterable[float], weights: Iterable[float] = ()) -> list[Cluster]:
    """Sums of rows by prompt, in order of first appearance.

    Args:
        keys: the prompt of each row.
        values: of each row.
        weights: of each row; default 1.
    """
    rows = list(zip(keys, values, strict=True))
    sums: dict[Hashable, tuple[float, float, float]] = {}
    for (key, value), weight in zip(rows, list(weights) or [1.0] * len(rows), strict=True):
        total, summed, square = sums.get(key, (0.0, 0.0, 0.0))
        sums[key] = (total + weight * value, summed + weight, square + weight * weight)
    return [Cluster(*s) for s in sums.values()]


def mean(clusters: Sequence[Cluster]) -> Estimate:
    """The weighted mean of all rows, with the standard error of a ratio of sums over prompts (Cochran 1977, ch. 6)."""
    total, weight = math.fsum(c.total for c in clusters), math.fsum(c.weight for c in clusters)
    value, counted = total / weight, [c for c in clusters if c.weight]
    square = math.fsum((c.total - c.weight * value) ** 2 for c in counted)
    se = math.sqrt(square * len(counted) / (len(counted) - 1)) / weight if len(counted) > 1 else math.nan
    return Estimate(total, weight, se, len(counted))


def share(clusters: Sequence[Cluster]) -> Interval:
    """The weighted share of rows that hit, with a score interval over prompts.

    Like Wilson's, the interval contains every share P that the data do not contradict, with the variance implied by P:
    (share - P)^2 <= P (1 - P) / rows times the design effect times a squared quantile. The design effect is the
    variance over prompts relative to that of independent rows (Kish 1965; Rao and Scott 1992, Biometrics 48), both
    taken around P, as in a generalised score test (Boos 1992, The American Statistician 46). So for P far from the
    observed share it tends to the design effect of rows that are identical within prompts, and no prior is needed if
    every row hits. The quantile is Student's (:func:`_squared_quantile`), or the normal one if rows are identical
    within prompts: the design effect is then at its maximum, and nothing is estimated.

    The interval is never narrower than Wilson's for as many independent rows, nor wider than Wilson's for as many
    prompts (Kish's effective numbers if weights differ). With one row per prompt, or rows that are identical within
    prompts, it is Wilson's. Simulated in ``benchmarks/coverage.py``.

    Args:
        clusters: the rows by prompt, with values from 0 to 1; one half is a tie.

    Raises:
        ValueError: no row has a positive weight.
    """
    counted = [c for c in clusters if c.weight]
    if not counted:
        raise ValueError("a share needs at least one row")
    # a million prompts of one row each are often only a few distinct objects, so figures are computed once for each
    distinct, times = list({id(c): c for c in counted}.values()), list(Counter(map(id, counted)).values())
    weight, square = _sum((c.weight for c in distinct), times), _sum((c.square for c in distinct), times)
    rows, prompts = weight**2 / square, weight**2 / _sum((c.weight**2 for c in distinct), times)
    value = min(1.0, max(0.0, _sum((c.total for c in distinct), times) / weight))
    if len(counted) == 1:  # its rows may be all alike
        return Interval(value, *wilson(value, 1), 1)
    deviations = [(c.total - c.weight * value) / weight for c in distinct]
    squared_deviations = _sum((r * r for r in deviations), times)
    weighted_deviation = _sum((r * c.weight for r, c in zip(deviations, distinct, strict=True)), times) / weight
    quantile = _squared_quantile(deviations, times, prompts)

    def contains(p: float) -> bool:
        off = value - p
        spread, free = (
            squared_deviations + 2 * off * weighted_deviation + off * off / prompts,
            value * (1 - value) + off * off,
        )
        dependence = min(1.0, prompts * spread / free) if free else 1.0
        squared = quantile + max(0.0, Z95**2 - quantile) * dependence**2
        variance = min(Z95**2 / prompts * free, max(Z95**2 / rows * free, squared * spread))
        return off * off * free <= p * (1 - p) * variance

    by_prompts, by_rows = wilson(value * prompts, prompts), wilson(value * rows, rows)
    low, high = (_edge(contains, inner, outer) for inner, outer in zip(by_rows, by_prompts, strict=True))
    return Interval(value, low, high, len(counted))


def _sum(values: Iterable[float], times: Iterable[int]) -> float:
    """The sum of values with multiplicities, rounded once."""
    return math.fsum(chain.from_iterable(map(repeat, values, times)))


def _squared_quantile(deviations: Sequence[float], times: Sequence[int], prompts: float) -> float:
    """The squared 97.5% quantile for a score whose variance is taken around the tested share.

    It is P t^2 / (P - 1 + t^2) with Student's t, since a variance around the tested share contains the tested
    difference. The degrees of freedom are those of the variance over prompts: three times the square of the sum of
    squares, divided by the sum of fourth powers. That is P for normal prompts and 3 if one prompt dominates; it is at
    most prompts less one.

    Args:
        deviations: each prompt's deviation from its part of the share, summing to 0; each represents ``times`` prompts.
        prompts: P; Kish's effective number if weights differ.
    """
    squares, most = [r * r for r in deviations], sum(times) - 1.0
    fourth = _sum((s * s for s in squares), times)
    df = min(most, 3 * _sum(squares, times) ** 2 / fourth) if fourth > 0 else most
    t2 = t95(df) ** 2
    return prompts * t2 / (prompts - 1 + t2)


def _edge(contains: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last number, going from ``inside`` to ``outside``, at which ``contains`` is true."""
    if contains(outside):
        return outside
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if contains(middle) else (inside, middle)
    return inside


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of ``[S]`` independent values with Student's t interval, which is unknown for a single value.

    Raises:
        ValueError: there is no value.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    centre = math.fsum(values) / n
    if n < 2:
        return Interval(centre, None, None, n)
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    margin = t95(n - 1) * spread / math.sqrt(n)
    return Interval(centre, centre - margin, centre + margin, n)


def t95(df: float) -> float:
    """97.5% quantile of Student's t distribution.

    From a thousand degrees of freedom on, the expansion in 1/df (Abramowitz and Stegun 1964, 26.7.5) is exact to the
    last digits, so the audit of a data file need not load scipy.
    """
    if df >= _MANY_DF:
        z = NormalDist().inv_cdf((1 + LEVEL) / 2)
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
        return z + (first + (second + (third + fourth / df) / df) / df) / df
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))
