"""Prepare the next update while a GPU computes the current one.

An update of fixed data is a pure function of its number, so making it early, twice or never changes nothing. Updates on
the policy's own samples depend on its weights and are not made early.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from afzal.train.feed import Feed, Layout, Update, Updates


def with_prefetch(feed: Updates, steps: int) -> Updates:
    """The feed, with the next update made in the background if it runs on a GPU."""
    return PrefetchingFeed(feed, steps) if isinstance(feed, Feed) and feed.layout.device.type == "cuda" else feed


@dataclass(slots=True)
class PrefetchingFeed:
    """A feed of ``steps`` updates that starts making the next update when one is requested.

    An error in the background is raised when that update is requested.
    """

    feed: Feed
    steps: int
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "updates"))
    _pending: dict[int, Future[Update]] = field(default_factory=dict)

    @property
    def updates_per_epoch(self) -> float:
        return self.feed.updates_per_epoch

    @property
    def layout(self) -> Layout:
        return self.feed.layout

    def update(self, step: int) -> Update:
        pending = self._pending.pop(step, None)
        self._pending.clear()
        update = self.feed.update(step) if pending is None else pending.result()
        if step + 1 < self.steps:
            self._pending[step + 1] = self._thread.submit(self.feed.update, step + 1)
        return update
