"""When the next checkpoint is due by the clock, so that a kill costs a bounded amount of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from afzal.train import ranks


class SaveTimer:
    """Asked after every update; says whether a checkpoint is due before another update twice as long as any lately.

    With a checkpoint whenever it says so, a kill loses at most ``seconds`` of work: more only by an update (or an
    evaluation) that takes more than twice as long as those since the checkpoint before last, or longer than ``seconds``
    itself. The time that writing a checkpoint takes is not counted.

    Args:
        seconds: between checkpoints; infinite for none.
        clock: seconds from any origin; it never goes back.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._longest = self._longest_before = 0.0
        self._last_save = self._last_update = clock()

    def saved(self) -> None:
        """A checkpoint, for whatever reason, is on the disk now."""
        self._last_save = self._last_update = self.clock()
        self._longest_before, self._longest = self._longest, 0.0

    def due(self) -> bool:
        """An update has ended: whether to save now. For all ranks to call together; the clock of rank 0 decides, since
        a checkpoint is written by all of them."""
        now = self.clock()
        self._longest = max(self._longest, now - self._last_update)
        self._last_update = now
        return ranks.agreed(now - self._last_save + 2 * max(self._longest, self._longest_before) > self.seconds)
