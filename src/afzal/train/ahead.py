"""The next update is laid out while a GPU computes this one.

An update of fixed data is a pure function of its number, so that making it early, twice or never changes nothing; what
a policy writes itself depends on its weights and is left alone.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from afzal.train.feed import Feed, Layout, Update, Updates


def read_ahead(feed: Updates, steps: int) -> Updates:
    """The feed with its next update made in the background, where there is a GPU to be kept busy."""
    return Ahead(feed, steps) if isinstance(feed, Feed) and feed.layout.device.type == "cuda" else feed


@dataclass(slots=True)
class Ahead:
    """A feed of ``steps`` updates whose next update is on its way when one is asked for.

    An error of the making is raised where that update is asked for.
    """

    feed: Feed
    steps: int
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "updates"))
    _coming: dict[int, Future[Update]] = field(default_factory=dict)

    @property
    def updates_per_epoch(self) -> float:
        return self.feed.updates_per_epoch

    @property
    def layout(self) -> Layout:
        return self.feed.layout

    def update(self, step: int) -> Update:
        coming = self._coming.pop(step, None)
        self._coming.clear()
        update = self.feed.update(step) if coming is None else coming.result()
        if step + 1 < self.steps:
            self._coming[step + 1] = self._thread.submit(self.feed.update, step + 1)
        return update
