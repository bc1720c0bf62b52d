"""Trees laid out for one forward pass.

Two layouts give the same log-probs. *Shared*: all trees one after another in a single row, each prompt once, positions
restarting with every branch; attention is confined by :class:`TreeLayout`. *Unshared*: one row per response, prompt
repeated, padded on the right; any causal model can run it.

Shapes: R rows, L row length, N = R * L positions, M scored tokens, B responses, T pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from afzal.records import Preference
from afzal.tokens.tree import Tree, only_branch

Sharing = Literal["shared", "unshared"]

_BUCKET_SLACK = 1.25  # trees whose lengths differ by less are attended in one padded block


@dataclass(frozen=True, slots=True)
class Block:
    """Trees of similar length for one attention call: G trees, padded to S slots.

    ``index`` ``[G, S]`` int64: row position of each slot (padding repeats position 0 and is never read back).
    ``branch`` ``[G, S]`` int64: 0 for prompt tokens, k for the k-th branch, -1 for padding.
    ``position`` ``[G, S]`` int64: logical position, restarting with every branch.
    """

    index: Tensor
    branch: Tensor
    position: Tensor


class TreeLayout:
    """What attention needs to know about a shared row: blocks, and the way back from their slots to the row."""

    def __init__(self, blocks: Sequence[Block], inverse: Tensor) -> None:
        self.blocks = tuple(blocks)
        self.inverse = inverse
        self._masks: dict[int | None, list[Tensor]] = {}

    def masks(self, window: int | None) -> list[Tensor]:
        """Per block, bool ``[G, 1, S, S]``: may this query slot see that key slot?

        A token sees its tree's prompt and its own branch up to itself; with a sliding window, only the last
        ``window`` logical positions. Padding slots see slot 0, so that no softmax row is empty.
        """
        if window not in self._masks:
            self._masks[window] = [_visible(b, window) for b in self.blocks]
        return self._masks[window]


@dataclass(frozen=True)
class Batch:
    """One forward pass: ids, where to predict, and the opinions on the responses.

    Attributes:
        ids, positions: ``[R, L]`` int64.
        attention_mask: ``[R, L]`` int64 for the unshared layout, else None.
        layout: the tree structure for the shared layout, else None.
        predict_at: ``[M]`` int64 flat positions whose hidden state predicts ``target`` ``[M]``; may repeat.
        response_of: ``[M]`` int64, ascending.
        sources: per response, its tree and branch number.
        preferences: pairs as (yw, yl, p, weight, margin) rows over the B responses.
        desirable: ``[B]`` float, NaN unknown.
    """

    ids: Tensor
    positions: Tensor
    attention_mask: Tensor | None
    layout: TreeLayout | None
    predict_at: Tensor
    target: Tensor
    response_of: Tensor
    sources: tuple[tuple[Tree, int], ...]
    preferences: Tensor
    desirable: Tensor

    @property
    def n_responses(self) -> int:
        return len(self.sources)

    @cached_property
    def n_tokens(self) -> int:
        """Tokens really computed, padding excluded."""
        return self.ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    @cached_property
    def group_of(self) -> Tensor:
        """``[B]`` int64: which tree, counted from 0, a response belongs to."""
        starts = [k == 0 for _, k in self.sources]
        return torch.tensor(np.cumsum(starts) - 1, dtype=torch.int64, device=self.ids.device)

    @cached_property
    def score(self) -> Tensor:
        """``[B]`` float: rating of a response, or minus its rank; NaN unknown."""
        found = [t.scores[k] if t.scores else None for t, k in self.sources]
        return torch.tensor([math.nan if s is None else s for s in found], dtype=torch.float32, device=self.ids.device)

    @property
    def item_ids(self) -> list[str]:
        """The items in this batch, once each, in order."""
        return list(dict.fromkeys(t.item_id for t, _ in self.sources))


def collate(trees: Sequence[Tree], sharing: Sharing, device: torch.device | str = "cpu") -> Batch:
    """Lay trees out for one forward pass."""
    if not trees:
        raise ValueError("cannot collate an empty list of trees")
    made = _shared(trees) if sharing == "shared" else _unshared(trees)
    ids, positions, mask, layout, starts = made
    predict_at, target, response_of = _predictions(trees, starts)
    move = lambda a: torch.tensor(a, device=device)  # noqa: E731
    return Batch(
        move(ids),
        move(positions),
        None if mask is None else move(mask),
        None if layout is None else TreeLayout([Block(*map(move, b)) for b in layout[0]], move(layout[1])),
        move(predict_at),
        move(target),
        move(response_of),
        tuple((t, k) for t in trees for k in range(len(t.branches))),
        move(_preference_rows(trees)),
        move(_desirable(trees)),
    )


def expand(trees: Sequence[Tree]) -> list[Tree]:
    """One single-branch tree per response, in response order."""
    return [only_branch(t, k) for t in trees for k in range(len(t.branches))]


def _shared(trees: Sequence[Tree]):
    """ids, positions, no mask, (blocks, inverse), and per response the flat index of its first predictor and start."""
    lengths = np.array([t.n_tokens for t in trees])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    ids = np.concatenate([np.concatenate([t.prompt, *(b.ids for b in t.branches)]) for t in trees]).astype(np.int64)
    branch = np.concatenate([_branch_numbers(t) for t in trees])
    positions = np.concatenate([_restarting_positions(t) for t in trees])
    starts = []
    for t, offset in zip(trees, offsets, strict=True):
        at = offset + len(t.prompt)
        for b in t.branches:
            starts.append((offset + len(t.prompt) - 1, at))
            at += len(b.ids)
    return ids[None], positions[None], None, _blocks(lengths, offsets, branch, positions), starts


def _blocks(lengths: np.ndarray, offsets: np.ndarray, branch: np.ndarray, positions: np.ndarray):
    inverse = np.empty(int(lengths.sum()), dtype=np.int64)
    blocks, first_slot = [], 0
    for members in _similar_lengths(lengths):
        width = int(lengths[members].max())
        slot = np.arange(width)[None, :]
        real = slot < lengths[members][:, None]
        index = np.where(real, offsets[members][:, None] + slot, 0)
        blocks.append((index, np.where(real, branch[index], -1), np.where(real, positions[index], 0)))
        inverse[index[real]] = first_slot + np.flatnonzero(real.ravel())
        first_slot += index.size
    return blocks, inverse


def _similar_lengths(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices grouped so that the longest of a group is at most the slack times its shortest."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] * _BUCKET_SLACK >= lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [np.array(g) for g in groups]


def _visible(block: Block, window: int | None) -> Tensor:
    branch, position = block.branch, block.position
    query, key = branch[:, :, None], branch[:, None, :]
    distance = position[:, :, None] - position[:, None, :]
    seen = ((key == 0) | (key == query)) & (key >= 0) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    seen[:, :, 0] |= query[:, :, 0] < 0
    return seen[:, None]


def _unshared(trees: Sequence[Tree]):
    rows = [np.concatenate([t.prompt, b.ids]) for t in trees for b in t.branches]
    prompts = [len(t.prompt) for t in trees for _ in t.branches]
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, : len(row)], mask[r, : len(row)] = row, 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape)
    starts = [(r * width + p - 1, r * width + p) for r, p in enumerate(prompts)]
    return ids, positions, mask, None, starts


def _branch_numbers(t: Tree) -> np.ndarray:
    return np.repeat(np.arange(len(t.branches) + 1), [len(t.prompt), *(len(b.ids) for b in t.branches)])


def _restarting_positions(t: Tree) -> np.ndarray:
    p = len(t.prompt)
    return np.concatenate([np.arange(p), *(np.arange(p, p + len(b.ids)) for b in t.branches)])


def _predictions(trees: Sequence[Tree], starts: Sequence[tuple[int, int]]):
    branches = [b for t in trees for b in t.branches]
    predict_at, target, response_of = [], [], []
    for response, (b, (last_prompt, start)) in enumerate(zip(branches, starts, strict=True)):
        before = np.concatenate([[last_prompt], np.arange(start, start + len(b.ids) - 1)])
        predict_at.append(before[b.scored])
        target.append(b.ids[b.scored].astype(np.int64))
        response_of.append(np.full(int(b.scored.sum()), response, dtype=np.int64))
    return np.concatenate(predict_at), np.concatenate(target), np.concatenate(response_of)


def _preference_rows(trees: Sequence[Tree]) -> np.ndarray:
    rows: list[tuple[float, ...]] = []
    first = 0
    for t in trees:
        rows += [_row(q, first) for q in t.preferences]
        first += len(t.branches)
    return np.array(rows, dtype=np.float64).reshape(len(rows), 5)


def _row(q: Preference, first: int) -> tuple[float, ...]:
    return (first + q.i, first + q.j, q.p, q.weight, q.margin or 0.0)


def _desirable(trees: Sequence[Tree]) -> np.ndarray:
    labels = [label for t in trees for label in (t.labels or (None,) * len(t.branches))]
    return np.array([np.nan if label is None else float(label) for label in labels], dtype=np.float32)
