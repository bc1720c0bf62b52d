"""Lay out trees for one forward pass.

Two layouts give the same log-probs. *Shared*: all trees in a single row, each prompt once, positions restarting with
every branch; :class:`TreeLayout` restricts attention. *Unshared*: one row per response, with the prompt repeated and
padding on the right; any causal model can run it.

Shapes: R rows, L row length, N = R * L positions, M scored tokens, B responses, T pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from afzal.records import Preference
from afzal.tokens.attention_blocks import NeededLayout, Segment, TreeLayout, needed_part
from afzal.tokens.media import model_inputs
from afzal.tokens.tree import Tree, only_branch
from afzal.tokens.upload import upload

Sharing = Literal["shared", "unshared"]


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass: ids, predicted positions, and the opinions on the responses.

    Attributes:
        ids, positions: ``[R, L]`` int64.
        attention_mask: ``[R, L]`` int64 for the unshared layout, else None.
        layout: the tree structure for the shared layout, else None.
        predict_at: ``[M]`` int64 flat positions whose hidden state predicts ``target`` ``[M]``; may repeat.
        predict_at_on_host: the same, so that a layout can be made of it without waiting for the device.
        response_of: ``[M]`` int64, ascending.
        sources: per response, its tree and branch number.
        preferences: pairs as (yw, yl, p, weight, margin) rows over the B responses. This and the other opinions
            (``desirable``, ``group_of``, ``score``, ``scored``) stay on the host, so that reading them needs no device
            synchronisation.
        desirable: ``[B]`` float, NaN if unknown.
        idle: whether the batch only keeps its rank in step with the others and counts for nothing.
        update: number of the update it belongs to, from 0; it seeds random draws.
        media: further keyword arguments of the model: images and sounds in the order of their tokens, and
            ``[R, L]`` int64 which tokens those are.
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
    idle: bool = False
    update: int = 0
    media: Mapping[str, Tensor] = field(default_factory=dict)
    predict_at_on_host: np.ndarray | None = None

    @property
    def n_responses(self) -> int:
        """B, the number of branches of all trees."""
        return len(self.sources)

    @cached_property
    def n_tokens(self) -> int:
        """Number of computed tokens, without padding."""
        if self.attention_mask is None:
            return self.ids.numel()
        rows = self.sources[: len(self.ids)]  # the rest are the copies of an ensemble
        return sum(len(t.prompt) + len(t.branches[k].ids) for t, k in rows)

    @cached_property
    def group_of(self) -> Tensor:
        """``[B]`` int64: index of each response's tree, from 0."""
        starts = [k == 0 for _, k in self.sources]
        return torch.tensor(np.cumsum(starts) - 1, dtype=torch.int64)

    @cached_property
    def task_of(self) -> Tensor:
        """``[B]`` int64: task number of each response's item."""
        return torch.tensor([t.task for t, _ in self.sources], dtype=torch.int64)

    @cached_property
    def score(self) -> Tensor:
        """``[B]`` float: rating of each response, or its negated rank; NaN if unknown."""
        values = [t.scores[k] if t.scores else None for t, k in self.sources]
        return torch.tensor([math.nan if s is None else s for s in values], dtype=torch.float32)

    @cached_property
    def scored(self) -> Tensor:
        """``[B]`` int64: number of scored tokens of each response."""
        return torch.tensor([int(t.branches[k].scored.sum()) for t, k in self.sources], dtype=torch.int64)

    @cached_property
    def numbers(self) -> dict[str, Tensor]:
        """The branches' further numbers for the scored tokens, by name: ``[M]`` float32 each."""
        branches = [t.branches[k] for t, k in self.sources]
        return {
            name: upload(np.concatenate([b.numbers[name] for b in branches]), self.ids.device)
            for name in branches[0].numbers
        }

    @cached_property
    def layout_of_predictions(self) -> NeededLayout | None:
        """The shared layout for attention that is only needed at ``predict_at``; None if that saves next to nothing."""
        if self.layout is None or self.predict_at_on_host is None:
            return None
        return needed_part(self.layout, self.predict_at_on_host)

    @cached_property
    def in_pieces(self) -> Batch:
        """The same batch with each image and sound replaced by a small random piece of it."""
        trees = [t.in_pieces() for t, k in self.sources if k == 0]
        return collate(trees, "unshared" if self.layout is None else "shared", self.ids.device)

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of a model's forward pass."""
        if self.layout is None:
            return {"input_ids": self.ids, "attention_mask": self.attention_mask, **self.media}
        return {"input_ids": self.ids, "position_ids": self.positions, "tree": self.layout, **self.media}

    @property
    def item_ids(self) -> list[str]:
        """The distinct item ids in this batch, in order."""
        return list(dict.fromkeys(t.item_id for t, _ in self.sources))


def collate(trees: Sequence[Tree], sharing: Sharing, device: torch.device | str = "cpu") -> Batch:
    """Lay trees out for one forward pass."""
    if not trees:
        raise ValueError("cannot collate an empty list of trees")
    arrays = _shared(trees) if sharing == "shared" else _unshared(trees)
    ids, positions, mask, segments, starts = arrays
    predict_at, target, response_of = _predictions(trees, starts)
    move = lambda a: upload(a, device)  # noqa: E731
    return Batch(
        move(ids),
        move(positions),
        None if mask is None else move(mask),
        None if segments is None else TreeLayout(segments, ids.size, torch.device(device)),
        move(predict_at),
        move(target),
        move(response_of),
        tuple((t, k) for t in trees for k in range(len(t.branches))),
        torch.tensor(_preference_rows(trees)),
        torch.tensor(_desirable(trees)),
        media={name: move(array) for name, array in _media(trees, sharing, ids.shape).items()},
        predict_at_on_host=predict_at,
    )


def expand(trees: Sequence[Tree]) -> list[Tree]:
    """One single-branch tree per response, in response order."""
    return [only_branch(t, k) for t in trees for k in range(len(t.branches))]


def _shared(trees: Sequence[Tree]):
    """ids, positions, no mask, segments, and per response the flat indices of its first predictor and its start."""
    ids = np.concatenate([np.concatenate([t.prompt, *(b.ids for b in t.branches)]) for t in trees]).astype(np.int64)
    positions = np.concatenate([_restarting_positions(t) for t in trees])
    segments, starts, offset = [], [], 0
    for t in trees:
        prompt, start = len(t.prompt), offset + len(t.prompt)
        segments.append(Segment(offset, prompt))
        for b in t.branches:
            starts.append((offset + prompt - 1, start))
            segments.append(Segment(start, len(b.ids), offset, prompt))
            start += len(b.ids)
        offset = start
    return ids[None], positions[None], None, segments, starts


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


def _media(trees: Sequence[Tree], sharing: Sharing, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The model's inputs other than ids. A tree that is repeated for each branch repeats its media too."""
    times = [1 if sharing == "shared" else len(t.branches) for t in trees]
    arrays = model_inputs([m for t, n in zip(trees, times, strict=True) for _ in range(n) for m in t.media])
    for name in sorted({name for t in trees for name in t.types}):
        types = np.zeros(shape, dtype=np.int64)
        row = column = 0
        for t, n in zip(trees, times, strict=True):
            for _ in range(n):
                types[row, column : column + len(t.prompt)] = t.types.get(name, 0)
                row, column = (row, column + t.n_tokens) if sharing == "shared" else (row + 1, 0)
        arrays[name] = types
    return arrays


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
