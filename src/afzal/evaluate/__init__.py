"""How far judgements can be trusted: agreement, calibration, and what scores hang on that they should not; and how
policies compare by them."""

from .calibration import Bin, Calibration, Trend, calibration, trend
from .comparing import (
    Interval,
    Total,
    at_kl,
    best_of,
    best_of_kl,
    bootstrap,
    differences,
    matched_levels,
    over_seeds,
    standard_error,
    total,
    wins,
)

__all__ = [
    "Bin",
    "Calibration",
    "Interval",
    "Total",
    "Trend",
    "at_kl",
    "best_of",
    "best_of_kl",
    "bootstrap",
    "calibration",
    "differences",
    "matched_levels",
    "over_seeds",
    "standard_error",
    "total",
    "trend",
    "wins",
]
