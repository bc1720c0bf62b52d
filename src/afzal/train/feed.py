"""The trees of each update as a pure function of the step, so that resuming is arithmetic, not replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from afzal.errors import AfzalError
from afzal.tokens.batch import Batch, Sharing, collate
from afzal.tokens.pack import pack, update_order
from afzal.tokens.tree import Tree
from afzal.train import ranks


@dataclass(frozen=True, slots=True)
class Update:
    """Everything one optimiser step sees: micro-batches, and the mismatched rows of objectives that need them.

    ``record`` is logged before the step and says where the data come from; ``remote_trees`` are the update's trees that
    other ranks compute. ``weight_per_item`` is that of the full training set (:func:`weight_per_item`); None if the
    update is a training set in itself.
    """

    batches: list[Batch]
    mismatched: list[Batch]
    n_trees: int
    record: Mapping[str, Any] = field(default_factory=dict)
    remote_trees: Sequence[Tree] = ()
    weight_per_item: float | None = None

    @property
    def item_ids(self) -> list[str]:
        local = [i for b in self.batches if not b.idle for i in b.item_ids]
        return list(dict.fromkeys([*local, *(t.item_id for t in self.remote_trees)]))

    @property
    def n_tokens(self) -> int:
        """Tokens computed on all ranks, padding excluded."""
        shared = self.batches[0].attention_mask is None
        return sum(b.n_tokens for b in self.batches if not b.idle) + sum(_tokens(t, shared) for t in self.remote_trees)


@dataclass(slots=True)
class Layout:
    """How trees become forward passes: the attention layout, tokens per pass, and the device.

    The tokens per pass may be lowered during a run, which every holder of the layout sees.

    Attributes:
        rank, world: this rank, and the number of ranks.
        width: features of the model; the larger, the smaller attention's share in the cost of a tree.
    """

    sharing: Sharing
    tokens_per_forward: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    width: int = 4096

    def batches(self, trees: Sequence[Tree]) -> list[Batch]:
        """Micro-batches of at most ``tokens_per_forward`` tokens (a single larger tree goes alone)."""
        bins = _bins(trees, self.sharing, self.tokens_per_forward)
        return [collate([trees[i] for i in members], self.sharing, self.device) for members in bins]

    def local_batches(self, trees: Sequence[Tree]) -> tuple[list[Batch], list[Tree]]:
        """This rank's micro-batches of trees that are divided over all ranks by cost, and the other ranks' trees.

        Layers are gathered from all ranks for every pass, so all need the same number of passes: a rank with fewer gets
        idle batches, copies of the smallest tree.
        """
        split = self._shares(trees)
        return list(self._passes(split)), [t for r, share in enumerate(split) if r != self.rank for t in share]

    def passes(self, trees: Sequence[Tree]) -> Iterator[Batch]:
        """Yield the micro-batches of :meth:`local_batches` one by one, so that those of a full data set need not be in
        memory together."""
        return self._passes(self._shares(trees))

    def _shares(self, trees: Sequence[Tree]) -> list[list[Tree]]:
        if self.world == 1:
            return [list(trees)]
        shares = ranks.divide([cost_of_tree(t, self.width) for t in trees], self.world)
        return [[trees[i] for i in members] for members in shares]

    def _passes(self, split: Sequence[Sequence[Tree]]) -> Iterator[Batch]:
        bins = [_bins(share, self.sharing, self.tokens_per_forward) for share in split]
        for members in bins[self.rank]:
            yield collate([split[self.rank][i] for i in members], self.sharing, self.device)
        for _ in range(max(map(len, bins)) - len(bins[self.rank])):
            smallest = min((t for share in split for t in share), key=lambda t: t.n_tokens)
            yield replace(collate([smallest], self.sharing, self.device), idle=True)


class Updates(Protocol):
    """Training data for the loop: update number ``step`` (from 0), on request."""

    @property
    def updates_per_epoch(self) -> float: ...

    @property
    def layout(self) -> Layout: ...

    def update(self, step: int) -> Update: ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Training trees in shuffled updates of ``batch_size`` trees; the last of an epoch may be smaller.

    ``mismatched`` is empty or holds, for each tree, its prompt with another prompt's response. ``weigh`` makes the last
    change to a training batch. ``weight_per_item`` is that of all trees, before ``weigh``.

    Raises:
        AfzalError: the trees have pairs, and all of them have weight 0; or a weight is not finite.
    """

    trees: Sequence[Tree]
    mismatched: Sequence[Tree]
    batch_size: int
    seed: int
    layout: Layout
    weigh: Callable[[Batch], Batch] = lambda batch: batch
    weight_per_item: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_per_item", weight_per_item(self.trees))

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.trees) / self.batch_size)

    def members(self, step: int) -> list[int]:
        """Indices of the trees in update ``step`` (from 0)."""
        epoch, index = divmod(step, self.updates_per_epoch)
        return update_order(len(self.trees), self.batch_size, epoch=epoch, seed=self.seed)[index]

    def update(self, step: int) -> Update:
        members = self.members(step)
        batches, remote = self.layout.local_batches([self.trees[i] for i in members])
        mismatched, _ = self.layout.local_batches([self.mismatched[i] for i in members] if self.mismatched else [])
        weighed = [self.weigh(replace(b, update=step)) for b in batches]
        return Update(weighed, mismatched, len(members), remote_trees=remote, weight_per_item=self.weight_per_item)


def weight_per_item(trees: Sequence[Tree]) -> float:
    """The mean over trees with pairs of the summed weight of their pairs; 1 if there are no pairs.

    Raises:
        AfzalError: all pairs have weight 0, or a weight is not finite.
    """
    sums = [(t, math.fsum(q.weight for q in t.preferences)) for t in trees if t.preferences]
    if not sums:
        return 1.0
    if broken := next((t for t, total in sums if not math.isfinite(total)), None):
        raise AfzalError("a pair's weight is not a finite number", where=broken.item_id)
    mean = math.fsum(total for _, total in sums) / len(sums)
    if mean <= 0:
        raise AfzalError("all pairs have a weight of 0", where=", ".join(t.item_id for t, _ in sums[:5]))
    return mean


def cost_of_tree(t: Tree, width: int) -> float:
    """The arithmetic of one tree, in units of a token without attention: per layer 12 width^2 products for a token, and
    2 width for each token that it sees."""
    prompt = len(t.prompt)
    attended = prompt * (prompt + 1) / 2 + sum(len(b.ids) * (prompt + (len(b.ids) + 1) / 2) for b in t.branches)
    return t.n_tokens + attended / (6 * width)


def _tokens(t: Tree, shared: bool) -> int:
    return t.n_tokens if shared else t.n_tokens + (len(t.branches) - 1) * len(t.prompt)


def _bins(trees: Sequence[Tree], sharing: Sharing, budget: int) -> list[list[int]]:
    if not trees:
        return []
    if sharing == "shared":
        return pack([t.n_tokens for t in trees], budget)
    return _padded_bins(trees, budget)


def _padded_bins(trees: Sequence[Tree], budget: int) -> list[list[int]]:
    """Bins of trees of similar length, each with at most ``budget`` positions including padding."""
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
