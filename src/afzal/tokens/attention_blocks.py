"""Which queries attend to which keys in a row of packed trees, as a small number of dense blocks.

Every tree consists of segments: its prompt, whose queries see the prompt causally, and its branches, whose queries see
the full prompt and, causally, their own branch. Nothing else is computed: no branch against another, no tree against
another. Segments of similar length are padded into one block if the padding costs less than another call.

Shapes: G segments in a block, Q query slots, K key slots, N row positions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.tokens.upload import upload


@dataclass(frozen=True, slots=True)
class CallCost:
    """The overhead of a separate attention call, in floating-point operations on the same device, and the multiple to
    which its slot counts are rounded up."""

    operations: float
    multiple: int = 1


_WORTH_SKIPPING = 0.9  # largest share of needed positions for which the last block leaves the others out

_GPU, _CPU = CallCost(2e9), CallCost(1.5e7)
# oneDNN compiles a program for each new shape of a bf16 product, which takes ten times as long as the product. It
# caches the programs, so a few recurring shapes need only a few.
_CPU_BF16 = CallCost(3e7, 16)


def call_cost(device: torch.device, dtype: torch.dtype) -> CallCost:
    """The cost of an attention call on a device in a dtype."""
    if device.type != "cpu":
        return _GPU
    return _CPU_BF16 if dtype == torch.bfloat16 else _CPU


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive row positions whose queries see the same prompt: a branch, or the prompt itself.

    Attributes:
        start, length: row positions of the segment.
        prompt_start, prompt_length: row positions of the prompt's keys; length 0 if the segment is the prompt.
        skipped: number of its first positions that are keys only, since the results of their queries are not needed.
    """

    start: int
    length: int
    prompt_start: int = 0
    prompt_length: int = 0
    skipped: int = 0

    @property
    def queries(self) -> int:
        return self.length - self.skipped

    @property
    def keys(self) -> int:
        return self.prompt_length + self.length


@dataclass(frozen=True)
class Block:
    """One dense attention call: G segments padded to Q queries and K keys.

    Attributes:
        shape: G, Q, K.
        mask: bool ``[G, 1, Q, K]``, whether a query may see a key; None for plain causal order.
    """

    shape: tuple[int, int, int]
    mask: Tensor | None
    device: torch.device

    @cached_property
    def bias(self) -> Tensor:
        """float32 ``[G or 1, 1, Q, K]``: 0 if a query may see a key, else minus infinity."""
        return self.bias_in(torch.float32)

    def bias_in(self, dtype: torch.dtype) -> Tensor:
        """:attr:`bias` in another dtype, computed anew."""
        _, q, k = self.shape
        mask = self.mask
        if mask is None:
            mask = torch.ones(q, k, dtype=torch.bool, device=self.device).tril()[None, None]
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


@dataclass(frozen=True, slots=True)
class Plan:
    """Attention over one row: gather queries and keys, make one call per block, and scatter the results back.

    Attributes:
        queries, keys: int64, row position of every query slot and key slot, block after block.
        inverse: ``[M]`` int64, query slot of every needed row position.
        needed: ``[M]`` int64, those positions, ascending; None if all N are needed. Elsewhere the result is 0.
        attended: query-key products that the blocks compute; causal blocks count half.
    """

    blocks: tuple[Block, ...]
    queries: Tensor
    keys: Tensor
    inverse: Tensor
    needed: Tensor | None
    attended: int


class TreeLayout:
    """The structure of a row of trees, for attention."""

    def __init__(self, segments: Sequence[Segment], n_tokens: int, device: torch.device) -> None:
        self.segments, self.n_tokens, self.device = tuple(segments), n_tokens, device
        self._plans: dict[tuple[int, int | None, CallCost], Plan] = {}
        self._cache: dict[Hashable, Any] = {}

    def cached(self, key: Hashable, make: Callable[[TreeLayout], Any]) -> Any:
        """The result of ``make`` for this layout, computed once for all layers."""
        if key not in self._cache:
            self._cache[key] = make(self)
        return self._cache[key]

    def plan(self, width: int, window: int | None = None, dtype: torch.dtype = torch.float32) -> Plan:
        """The blocks for attention of ``width`` (heads x head width) features and a sliding window in tokens.

        The window counts logical positions, which restart with every branch.
        """
        key = (width, window, call_cost(self.device, dtype))
        if key not in self._plans:
            self._plans[key] = self._make(*key)
        return self._plans[key]

    def _make(self, width: int, window: int | None, cost: CallCost) -> Plan:
        groups = _groups(self.segments, cost.operations / (4 * width))
        blocks = [_block(group, window, self.device, cost.multiple) for group in groups]
        inverse = np.zeros(self.n_tokens, dtype=np.int64)
        first = 0
        for group, (block, _, _) in zip(groups, blocks, strict=True):
            _, q, _ = block.shape
            for n, s in enumerate(group):
                inverse[s.start + s.skipped : s.start + s.length] = first + n * q + np.arange(s.queries)
            first += len(group) * q
        move = lambda parts: upload(np.concatenate([p.ravel() for p in parts]), self.device)  # noqa: E731
        return Plan(
            tuple(block for block, _, _ in blocks),
            move([queries for _, queries, _ in blocks]),
            move([keys for _, _, keys in blocks]),
            upload(self._needed_of(inverse), self.device),
            self._needed,
            sum(_products(block) for block, _, _ in blocks),
        )

    _needed: Tensor | None = None

    def _needed_of(self, of_positions: np.ndarray) -> np.ndarray:
        return of_positions


class NeededLayout(TreeLayout):
    """A row of trees of which attention is needed at some positions only; it is 0 elsewhere.

    Args:
        whole: the same row with all positions.
        positions: int64 ``[M]`` on the host, the needed ones, ascending.
    """

    def __init__(self, whole: TreeLayout, positions: np.ndarray) -> None:
        segments = [part for s in whole.segments if (part := _needed_queries(s, positions)) is not None]
        super().__init__(segments, whole.n_tokens, whole.device)
        self.whole, self._positions = whole, positions
        self.positions = self._needed = upload(positions, whole.device)

    def _needed_of(self, of_positions: np.ndarray) -> np.ndarray:
        return of_positions[self._positions]


def needed_part(whole: TreeLayout, positions: np.ndarray) -> NeededLayout | None:
    """The layout for attention whose results are read at these positions only; None if leaving out the others would
    not pay.

    Args:
        positions: int64 ``[M]``, in any order, perhaps repeated.
    """
    positions = np.unique(positions)
    return NeededLayout(whole, positions) if 0 < len(positions) <= _WORTH_SKIPPING * whole.n_tokens else None


def _needed_queries(s: Segment, positions: np.ndarray) -> Segment | None:
    """The segment from its first to its last needed query; None if it has none."""
    first, end = np.searchsorted(positions, (s.start, s.start + s.length))
    if first == end:
        return None
    length = int(positions[end - 1]) + 1 - s.start
    return replace(s, length=length, skipped=int(positions[first]) - s.start)


def _products(block: Block) -> int:
    groups, q, k = block.shape
    return groups * (q * (q + 1) // 2 if block.mask is None else q * k)


def _groups(segments: Sequence[Segment], affordable: float) -> list[list[Segment]]:
    """Group prompts with prompts and branches with branches, while the padding of each addition costs at most
    ``affordable`` products."""
    order = sorted(segments, key=lambda s: (s.prompt_length > 0, -s.prompt_length, -s.length, s.start))
    groups: list[list[Segment]] = []
    queries = length = 0
    for s in order:
        if groups and (s.prompt_length > 0) == (groups[-1][0].prompt_length > 0):
            prompt, members = groups[-1][0].prompt_length, len(groups[-1])
            more_queries, longer = max(queries, s.queries), max(length, s.length)
            padded = more_queries * (prompt + longer)
            if members * (padded - queries * (prompt + length)) + padded - s.queries * s.keys <= affordable:
                groups[-1].append(s)
                queries, length = more_queries, longer
                continue
        groups.append([s])
        queries, length = s.queries, s.length
    return groups


def _block(
    group: Sequence[Segment], window: int | None, device: torch.device, multiple: int = 1
) -> tuple[Block, np.ndarray, np.ndarray]:
    """A block, and the row positions of its query slots ``[G, Q]`` and key slots ``[G, K]``; padding repeats a
    position."""
    column = lambda name: np.array([getattr(s, name) for s in group])  # noqa: E731
    starts, lengths, prompts, skipped = (column(n) for n in ("start", "length", "prompt_length", "skipped"))
    longest = int(lengths.max())
    up = lambda n: -(-int(n) // multiple) * multiple  # noqa: E731
    width, own, prompt = up((lengths - skipped).max()), up(longest), up(prompts.max())
    queries = _positions(starts + skipped, lengths - skipped, width)
    keys = np.concatenate(
        [_positions(column("prompt_start"), prompts, prompt), _positions(starts, lengths, own)], axis=1
    )
    mask = None
    if prompt or skipped.any() or (window is not None and longest > window):
        offsets = skipped[:, None] + _positions(np.zeros_like(starts), lengths - skipped, width)
        mask = upload(_visible(offsets, prompts, own, prompt, window), device)
    return Block((len(group), width, prompt + own), mask, device), queries, keys


def _positions(starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """``[G, width]``: consecutive row positions; beyond a segment's end, its first position is repeated."""
    slot = np.arange(width)[None, :]
    return starts[:, None] + np.where(slot < lengths[:, None], slot, 0)


def _visible(offsets: np.ndarray, prompts: np.ndarray, own: int, prompt: int, window: int | None) -> np.ndarray:
    """bool ``[G, 1, Q, K]``. A padding query sees what the first query sees, so no softmax row is empty.

    Args:
        offsets: ``[G, Q]``, positions of the queries in their segments.
        own, prompt: key slots for the segment itself and for its prompt.
    """
    query = offsets[:, :, None]
    distance = query - np.arange(own)  # logical distance to a key of the same branch
    in_branch = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    slot = np.arange(prompt)[None, None, :]
    ahead = prompts[:, None, None] + query - slot
    in_prompt = np.broadcast_to(slot < prompts[:, None, None], ahead.shape)
    in_prompt = in_prompt if window is None else in_prompt & (ahead < window)
    return np.concatenate([in_prompt, in_branch], axis=2)[:, None]
