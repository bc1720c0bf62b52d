"""Group examples: bins under a token budget, shuffled updates, and mismatched partners for KTO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from afzal.errors import AfzalError
from afzal.tokens.hashing import GOLDEN, avalanche
from afzal.tokens.tree import Branch, Tree

_MASK = (1 << 64) - 1


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most ``budget``: first-fit decreasing, stable for equal lengths.

    Every index is in one bin; one that is longer than the budget has its own bin. The number of bins is at most 11/9 of
    the optimum plus 6/9 (Dosa 2007); for lengths well under the budget, a few per cent above it.

    Returns:
        bins in the order they were opened, each with its indices in the order they were placed.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")
    bins: list[list[int]] = []
    space = _FreeSpace(len(lengths))
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = space.first(lengths[i]) if lengths[i] <= budget else None
        if place is None:
            place = len(bins)
            bins.append([])
            space.set(place, max(budget - lengths[i], 0) if lengths[i] <= budget else -1)
        else:
            space.set(place, space.get(place) - lengths[i])
        bins[place].append(i)
    return bins


def update_order(n: int, batch_size: int, *, epoch: int, seed: int) -> list[list[int]]:
    """Indices ``0..n-1`` shuffled and split into updates of ``batch_size``; the last may be smaller.

    A pure function of its arguments, the same on every machine and version, so there is no generator state to save. The
    order within an epoch does not depend on ``batch_size``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = _shuffled(n, seed, epoch).tolist()
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def mismatched(trees: Sequence[Tree], seed: int, *, max_tokens: int | None = None) -> list[Tree]:
    """For each single-branch tree, its prompt with the response of a tree that has another prompt.

    KTO (arXiv 2402.01306, section 4.1) estimates its KL term from these pairs. Trees are put in a random order with
    equal prompts adjacent, and rotated by the size of the largest group. So each response is used once, unless one
    prompt has more than half of the trees.

    Args:
        max_tokens: responses that would not fit after their new prompt lose their right end (and EOS).

    Raises:
        AfzalError: fewer than two different prompts.
    """
    if any(len(t.branches) != 1 for t in trees):
        raise ValueError("mismatched pairs are made of trees with one branch each")
    groups = _groups(trees, seed)
    if len(groups) < 2:
        raise AfzalError(
            f"KTO's KL estimate needs two different prompts in an update, and this one has {len(groups)}"
            f" (of {len(trees)} examples)",
            remedy="a larger batch size, or more prompts",
        )
    partners: list[Tree | None] = [None] * len(trees)
    for i, j in _partners(groups):
        response = _fit(trees[j].branches[0], len(trees[i].prompt), max_tokens)
        partners[i] = replace(trees[i], branches=(response,), preferences=(), labels=())
    return [t for t in partners if t is not None]


def _partners(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    order = [i for group in groups for i in group]
    shift = max(map(len, groups))
    pairs, start = [], 0
    for group in groups:
        others = order[start + len(group) :] + order[:start]
        for place, i in enumerate(group):
            # Rotating by the size of the largest group always leaves the own group. `others` begins after that group:
            pairs.append((i, others[(place + shift - len(group)) % len(others)]))
        start += len(group)
    return pairs


def _groups(trees: Sequence[Tree], seed: int) -> list[list[int]]:
    """Indices grouped by equal prompts; groups and members are in random order."""
    groups: dict[bytes, list[int]] = {}
    for i in _shuffled(len(trees), seed, 0).tolist():
        groups.setdefault(trees[i].prompt.astype(np.int32).tobytes(), []).append(i)
    return list(groups.values())


def _fit(branch: Branch, prompt: int, max_tokens: int | None) -> Branch:
    if max_tokens is None or prompt + len(branch.ids) <= max_tokens:
        return branch
    limit = max(1, max_tokens - prompt)
    return Branch(branch.ids[:limit], branch.scored[:limit])


def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """``0..n-1`` ordered by a 64-bit hash (splitmix64) of seed, epoch and index."""
    salt = _mix(_mix(np.array([seed & _MASK], dtype=np.uint64)) ^ np.array([epoch & _MASK], dtype=np.uint64))
    keys = _mix(salt ^ _mix(np.arange(n, dtype=np.uint64)))
    return np.argsort(keys, kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 on uint64."""
    return avalanche(x + np.uint64(GOLDEN))


class _FreeSpace:
    """Free tokens per bin, as a tree of maxima that finds the first bin with enough room in O(log n)."""

    def __init__(self, n: int) -> None:
        self.leaves = 1 << max(0, n - 1).bit_length()
        self.most = [-1] * (2 * self.leaves)

    def get(self, place: int) -> int:
        return self.most[self.leaves + place]

    def set(self, place: int, free: int) -> None:
        node = self.leaves + place
        self.most[node] = free
        while node > 1:
            node //= 2
            self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])

    def first(self, needed: int) -> int | None:
        """The first bin with at least ``needed`` tokens free; an unopened one has -1."""
        if self.most[1] < needed:
            return None
        node = 1
        while node < self.leaves:
            node = 2 * node if self.most[2 * node] >= needed else 2 * node + 1
        return node - self.leaves
