"""Send the lines of ``metrics.jsonl`` to experiment trackers, named as in `transformers`."""

from __future__ import annotations

from .registry import TRACKERS, opener, refuse_unready
from .relay import NOTES, Relay, open_relay
from .tracker import Line, RunInfo, Tracker

__all__ = ["NOTES", "TRACKERS", "Line", "Relay", "RunInfo", "Tracker", "open_relay", "opener", "refuse_unready"]
