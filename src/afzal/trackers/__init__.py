"""Send the lines of ``metrics.jsonl`` to experiment trackers, named as in `transformers`."""

from __future__ import annotations

from .registry import TRACKERS, opener, refuse_unready
from .relay import NOTES, Relay, relayed
from .tracker import About, Line, Tracker

__all__ = ["NOTES", "TRACKERS", "About", "Line", "Relay", "Tracker", "opener", "refuse_unready", "relayed"]
