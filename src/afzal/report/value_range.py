"""The relevant range of y: one stray run, or a few spikes, must not flatten all other curves.

The live charts (``web/static/axes.js``) use the same rule.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from afzal.text import is_number

REACH = 12.0  # median absolute deviations from the median that count as usual
STRAY = 0.1  # share of a series' values beyond the reach that makes it a stray
GAIN = 4.0  # factor by which the range must shrink, or everything is shown
_QUANTILES = 41  # per series, so that a long one does not outweigh the others


def robust_range(groups: Iterable[Sequence[float | None]]) -> tuple[float, float]:
    """The smallest and the largest value to show; (0, 1) without values.

    Pool the values of all series with equal weight per series. Values within :data:`REACH` median absolute deviations
    of the median are usual; a series with more than a few unusual values is a stray. The range covers the usual values
    of the other series. It covers everything if at least half of the series are strays, if there are only two series
    and one is a stray (it is unclear which), or if the full range is hardly larger.
    """
    series = [sorted(v for v in values if is_number(v)) for values in groups]
    series = [values for values in series if values]
    if not series:
        return 0.0, 1.0
    full = min(s[0] for s in series), max(s[-1] for s in series)
    pooled = [s[round(k * (len(s) - 1) / (_QUANTILES - 1))] for s in series for k in range(_QUANTILES)]
    middle = statistics.median(pooled)
    reach = REACH * statistics.median(abs(v - middle) for v in pooled)
    usual = [s for s in series if sum(abs(v - middle) > reach for v in s) <= STRAY * len(s)]
    inner = [v for s in usual for v in s if abs(v - middle) <= reach]
    most = 0 if len(series) < 3 else (len(series) - 1) // 2
    if reach == 0 or not inner or len(series) - len(usual) > most:
        return full
    low, high = min(inner), max(inner)
    return (low, high) if high > low and full[1] - full[0] > GAIN * (high - low) else full


def shown_range(groups: Sequence[Sequence[float | None]]) -> list[float]:
    """The ends of the range that is shown for these values; empty without values."""
    return list(robust_range(groups)) if any(is_number(v) for group in groups for v in group) else []
