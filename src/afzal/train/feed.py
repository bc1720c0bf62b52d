"""Which trees make up which update, as a pure function of the step: resuming is arithmetic, not replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from afzal.tokens.batch import Batch, Sharing, collate
from afzal.tokens.pack import pack, update_order
from afzal.tokens.tree import Tree


@dataclass(frozen=True, slots=True)
class Update:
    """Everything one optimiser step sees: micro-batches, and the mismatched rows of objectives that need them.

    ``record`` is what there is to log about where they come from, before the step.
    """

    batches: list[Batch]
    mismatched: list[Batch]
    n_trees: int
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def item_ids(self) -> list[str]:
        return list(dict.fromkeys(i for b in self.batches for i in b.item_ids))


@dataclass(slots=True)
class Layout:
    """How trees become forward passes: the attention layout, tokens per pass, and the device.

    The tokens per pass may be lowered while a run goes on, and whoever holds the layout follows.
    """

    sharing: Sharing
    tokens_per_forward: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def batches(self, trees: Sequence[Tree]) -> list[Batch]:
        """Micro-batches of at most ``tokens_per_forward`` tokens (a single larger tree goes alone)."""
        bins = _bins(trees, self.sharing, self.tokens_per_forward)
        return [collate([trees[i] for i in members], self.sharing, self.device) for members in bins]


class Updates(Protocol):
    """What the loop trains on: update number ``step`` (from 0), whenever it is asked for."""

    @property
    def updates_per_epoch(self) -> float: ...

    @property
    def layout(self) -> Layout: ...

    def update(self, step: int) -> Update: ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Training trees in shuffled updates of ``batch_size`` trees; the last of an epoch may be smaller.

    ``mismatched`` is empty or holds for each tree its prompt with another prompt's response. ``weigh`` has the last
    word on a batch that is trained on.
    """

    trees: Sequence[Tree]
    mismatched: Sequence[Tree]
    batch_size: int
    seed: int
    layout: Layout
    weigh: Callable[[Batch], Batch] = lambda batch: batch

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.trees) / self.batch_size)

    def members(self, step: int) -> list[int]:
        """Indices of the trees in update ``step`` (from 0)."""
        epoch, at = divmod(step, self.updates_per_epoch)
        return update_order(len(self.trees), self.batch_size, epoch=epoch, seed=self.seed)[at]

    def update(self, step: int) -> Update:
        members = self.members(step)
        batches = self.layout.batches([self.trees[i] for i in members])
        mismatched = self.layout.batches([self.mismatched[i] for i in members]) if self.mismatched else []
        return Update([self.weigh(b) for b in batches], mismatched, len(members))


def _bins(trees: Sequence[Tree], sharing: Sharing, budget: int) -> list[list[int]]:
    if not trees:
        return []
    if sharing == "shared":
        return pack([t.n_tokens for t in trees], budget)
    return _padded_bins(trees, budget)


def _padded_bins(trees: Sequence[Tree], budget: int) -> list[list[int]]:
    """Trees of similar length together, each bin at most ``budget`` positions including padding."""
    longest = np.array([len(t.prompt) + max(len(b.ids) for b in t.branches) for t in trees])
    bins: list[list[int]] = []
    rows = width = 0
    for i in np.argsort(-longest, kind="stable").tolist():
        branches = len(trees[i].branches)
        if not bins or (rows + branches) * width > budget:
            bins.append([])
            rows, width = 0, int(longest[i])
        bins[-1].append(i)
        rows += branches
    return bins
