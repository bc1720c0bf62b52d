"""The range of y that matters: one stray run, or a few spikes, must not flatten all the other curves.

The rule is the one of the live charts too (``web/static/scale.js``).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from afzal.text import is_number

REACH = 12.0  # median absolute deviations from the median that count as usual
STRAY = 0.1  # share of a series' values beyond the reach that makes it a stray
GAIN = 4.0  # how much smaller the range must become, or all is shown
_QUANTILES = 41  # of each series, so that a long one does not outvote the others


def focus(groups: Iterable[Sequence[float | None]]) -> tuple[float, float]:
    """The least and the largest value to show; (0, 1) without values.

    Of the values of all series, each series with the same weight, those within :data:`REACH` median absolute deviations
    of the median are usual. A series with more than a few others is a stray. The range is that of the usual values of
    the other series, unless half of the series or more are strays, one of two is (nobody knows which), or the range of
    everything is hardly larger.
    """
    series = [sorted(v for v in values if is_number(v)) for values in groups]
    series = [values for values in series if values]
    if not series:
        return 0.0, 1.0
    whole = min(s[0] for s in series), max(s[-1] for s in series)
    pooled = [s[round(k * (len(s) - 1) / (_QUANTILES - 1))] for s in series for k in range(_QUANTILES)]
    middle = statistics.median(pooled)
    reach = REACH * statistics.median(abs(v - middle) for v in pooled)
    usual = [s for s in series if sum(abs(v - middle) > reach for v in s) <= STRAY * len(s)]
    inner = [v for s in usual for v in s if abs(v - middle) <= reach]
    most = 0 if len(series) < 3 else (len(series) - 1) // 2
    if reach == 0 or not inner or len(series) - len(usual) > most:
        return whole
    low, high = min(inner), max(inner)
    return (low, high) if high > low and whole[1] - whole[0] > GAIN * (high - low) else whole


def shown(groups: Sequence[Sequence[float | None]]) -> list[float]:
    """The ends of what is shown of these values; nothing without values."""
    return list(focus(groups)) if any(is_number(v) for group in groups for v in group) else []
