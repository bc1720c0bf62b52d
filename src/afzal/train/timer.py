"""Decide by the clock when the next checkpoint is due, so that a kill costs a bounded amount of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from afzal.train import ranks


class SaveTimer:
    """Called after every update; says whether to save before another update twice as long as any recent one.

    If every due checkpoint is written, a kill loses at most ``seconds`` of work. It loses more only if an update (or an
    evaluation) takes more than twice as long as those since the checkpoint before last, or longer than ``seconds``. The
    time to write a checkpoint is not counted.

    Args:
        seconds: between checkpoints; infinite for none.
        clock: seconds from any origin; it must be monotonic.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._longest = self._longest_before = 0.0
        self._last_save = self._last_update = clock()

    def saved(self) -> None:
        """Record that a checkpoint, for whatever reason, is now on disk."""
        self._last_save = self._last_update = self.clock()
        self._longest_before, self._longest = self._longest, 0.0

    def due(self) -> bool:
        """Whether to save after the update that has just ended. All ranks must call it together; the clock of rank 0
        decides, since all of them write a checkpoint."""
        now = self.clock()
        self._longest = max(self._longest, now - self._last_update)
        self._last_update = now
        return ranks.agreed(now - self._last_save + 2 * max(self._longest, self._longest_before) > self.seconds)
