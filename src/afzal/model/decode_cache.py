"""Keys and values of prompts, each kept once, and of the rows that continue them while answers are sampled.

Shapes: G prompts of at most P tokens, R rows (samples being decoded), K key heads, D head width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROOM = 16  # suffix tokens: space is allocated in multiples of it, so that products over it have few shapes


@dataclass(slots=True)
class Layer:
    """Keys and values of one attention layer."""

    prompt_k: Tensor  # [G, K, D, P], as the product with queries reads them
    prompt_v: Tensor  # [G, K, P, D]
    suffix_k: Tensor  # [R, room, K * D]
    suffix_v: Tensor  # [R, room, K * D]


class DecodeCache:
    """Keys and values of G prompts, each kept once, and of the R rows that continue them.

    Args:
        lengths: ``[G]`` int64, tokens per prompt, virtual ones included.
        group: ``[R]`` int64, ascending: the prompt that each row continues.

    Attributes:
        prefix: for every layer the keys and values ``[1, K, n, D]`` of the first tokens of all prompts, if
            prefix tuning gives them.
        written: suffix slots in use; the newest tokens of all rows are in the same slot.
        start: ``[R]`` int64, the slot of each row's first token: not 0 for rows that were merged with older ones.
    """

    def __init__(self, lengths: Tensor, group: Tensor) -> None:
        self.lengths, self.group = lengths, group
        self.prefix: Sequence[tuple[Tensor, Tensor]] = ()
        self.layers: dict[nn.Module, Layer] = {}
        self.filling: slice | None = None  # the prompts that a pass over prompts computes
        self.written = 0
        self.start = torch.zeros_like(group)
        self._arrange()

    def positions(self) -> Tensor:
        """``[1, R]`` logical position of each row's next token."""
        return (self.lengths[self.group] + self.written - self.start)[None]

    def keep(self, rows: Tensor) -> None:
        """Continue only these rows, in this order; prompts without a row are dropped. ``rows`` ascends."""
        group = self.group[rows]
        prompts, self.group = torch.unique(group, return_inverse=True)
        narrower = len(prompts) < len(self.lengths)
        self.lengths, self.start = self.lengths[prompts], self.start[rows]
        unused = int(self.start.min()) // _ROOM * _ROOM  # slots of rows that have left
        self.written, self.start = self.written - unused, self.start - unused
        for layer in self.layers.values():
            layer.suffix_k, layer.suffix_v = layer.suffix_k[rows, unused:], layer.suffix_v[rows, unused:]
            if narrower:
                layer.prompt_k, layer.prompt_v = layer.prompt_k[prompts], layer.prompt_v[prompts]
        self._arrange()

    def hidden_prompt(self, window: int | None) -> Tensor | None:
        """``[R, 1, 1, S]`` bool: which of the last S slots of its prompt a row's next token does not see; None if it
        sees all. Earlier slots are all seen.
        """
        if self._hidden_at != self.written:
            self._hidden, self._hidden_at = {}, self.written
        if window not in self._hidden:
            self._hidden[window] = self._find_hidden(window)
        return self._hidden[window]

    def hidden_suffix(self) -> Tensor | None:
        """``[R, 1, 1, S]`` bool: which of the first S suffix slots are older than a row; None if none is."""
        return self._before_start

    def keep_prompts(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Store a layer's keys and values ``[g, K, P, D]`` of the prompts in :attr:`filling`."""
        if module not in self.layers:
            groups, longest, heads, width = len(self.lengths), int(self.lengths.max()), key.shape[1], key.shape[3]
            prompts = key.new_zeros((groups, heads, width, longest)), value.new_zeros((groups, heads, longest, width))
            self.layers[module] = Layer(*prompts, *key.new_zeros((2, len(self.group), _ROOM, heads * width)))
        layer = self.layers[module]
        layer.prompt_k[self.filling, ..., : key.shape[2]] = key.mT
        layer.prompt_v[self.filling, :, : key.shape[2]] = value

    def append(self, module: nn.Module, key: Tensor, value: Tensor) -> Layer:
        """Store a layer's keys and values ``[K, R, D]`` of the rows' newest tokens, and return all of the layer's."""
        layer = self.layers[module]
        if self.written == layer.suffix_k.shape[1]:
            layer.suffix_k, layer.suffix_v = (_longer(t) for t in (layer.suffix_k, layer.suffix_v))
        layer.suffix_k[:, self.written].unflatten(1, (len(key), -1)).copy_(key.transpose(0, 1))
        layer.suffix_v[:, self.written].unflatten(1, (len(value), -1)).copy_(value.transpose(0, 1))
        return layer

    def to_grid(self, rows: Tensor) -> Tensor:
        """Rows ``[R, ...]`` as ``[G, m, ...]``: the rows of each prompt side by side, padded with row 0."""
        if self._grid is None:
            return rows.unflatten(0, (len(self.lengths), -1))
        return rows[self._grid]

    def to_rows(self, grid: Tensor) -> Tensor:
        """The inverse of :meth:`to_grid`."""
        flat = grid.flatten(0, 1)
        return flat if self._slot is None else flat[self._slot]

    def block_diagonal(self, q: Tensor) -> Tensor:
        """``[R, H, K * D]``: queries ``[R, K, H/K, D]`` in the columns of their own key head, zeros in the others'.

        All heads' scores over a row's suffix are then one product. It does K times the necessary multiplications, most
        of them by zero; but decoding is bound by memory, and this product reads a row's keys as one matrix. The next
        call overwrites the result.
        """
        rows, heads, per_key_head, width = q.shape
        if q.shape not in self._apart:
            self._apart[q.shape] = q.new_zeros((rows, heads, per_key_head, heads, width))
        self._apart[q.shape].diagonal(dim1=1, dim2=3).copy_(q.permute(0, 2, 3, 1))
        return self._apart[q.shape].view(rows, heads * per_key_head, heads * width)

    def _arrange(self) -> None:
        counts = torch.bincount(self.group, minlength=len(self.lengths))
        largest = int(counts.max())
        self._shortest = int(self.lengths.min())
        self._hidden: dict[int | None, Tensor | None] = {}
        self._hidden_at = -1
        self._apart: dict[torch.Size, Tensor] = {}
        latest = int(self.start.max())
        slots = torch.arange(latest, device=self.start.device)
        self._before_start = (slots < self.start[:, None])[:, None, None] if latest else None
        self._grid = self._slot = None
        if not bool((counts == largest).all()):
            first = counts.cumsum(0) - counts
            place = torch.arange(len(self.group), device=self.group.device) - first[self.group]
            self._slot = self.group * largest + place
            self._grid = torch.zeros(len(counts) * largest, dtype=torch.int64, device=self.group.device)
            self._grid[self._slot] = torch.arange(len(self.group), device=self.group.device)
            self._grid = self._grid.view(len(counts), largest)

    def _find_hidden(self, window: int | None) -> Tensor | None:
        width = next(iter(self.layers.values())).prompt_k.shape[3]
        first = self._shortest if window is None else 0
        if first == width:
            return None
        slots, ends = torch.arange(first, width, device=self.lengths.device), self.lengths[self.group][:, None]
        hidden = slots >= ends
        if window is not None:
            hidden |= self.positions()[0][:, None] - slots >= window
        return hidden[:, None, None]


def merged(older: DecodeCache, younger: DecodeCache) -> DecodeCache:
    """One cache of the rows of both, in this order, so that they need one attention instead of two.

    The younger rows' tokens move to later slots, and read the empty ones before them from now on.
    """
    shift = older.written - younger.written
    cache = DecodeCache(
        torch.cat([older.lengths, younger.lengths]), torch.cat([older.group, len(older.lengths) + younger.group])
    )
    cache.prefix, cache.written = older.prefix, older.written
    cache.start = torch.cat([older.start, younger.start + shift])
    for module, layer in older.layers.items():
        other, room = younger.layers[module], layer.suffix_k.shape[1]
        cache.layers[module] = Layer(
            _stacked(layer.prompt_k, other.prompt_k, dim=3),
            _stacked(layer.prompt_v, other.prompt_v, dim=2),
            torch.cat([layer.suffix_k, _shifted(other.suffix_k[:, : younger.written], shift, room)]),
            torch.cat([layer.suffix_v, _shifted(other.suffix_v[:, : younger.written], shift, room)]),
        )
    cache._arrange()
    return cache


def _stacked(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """The rows of both, with zeros at the end of the shorter one along ``dim`` of four."""
    width = max(a.shape[dim], b.shape[dim])
    return torch.cat([F.pad(t, (0, 0) * (3 - dim) + (0, width - t.shape[dim])) for t in (a, b)])


def _shifted(suffix: Tensor, shift: int, room: int) -> Tensor:
    return F.pad(suffix, (0, 0, shift, room - shift - suffix.shape[1]))


def _longer(suffix: Tensor) -> Tensor:
    rows, slots, width = suffix.shape
    # an empty slot costs as much to read as a full one, so the space grows by a quarter instead of doubling
    return torch.cat([suffix, suffix.new_zeros((rows, max(_ROOM, slots // 4 // _ROOM * _ROOM), width))], dim=1)
