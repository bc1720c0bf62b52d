"""How far judgements can be trusted: agreement, calibration, and what scores hang on that they should not."""

from .calibration import Bin, Calibration, Trend, calibration, trend

__all__ = ["Bin", "Calibration", "Trend", "calibration", "trend"]
