"""Which part of a tensor a rank holds, and how any ranks put whole tensors together again from such parts.

A tensor is cut along its axes, so that its pieces are the boxes of a grid. Each rank writes its boxes; each reads what
of them overlaps with what it needs, which may be cut otherwise, or not at all. A tensor that is whole on every rank is
taken to be the same on all, and rank 0 writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from afzal.train import ranks
from afzal.train.tensorfile import DTYPES, ITEM_BYTES

Entry = dict[str, Any]
"""What a manifest says of one tensor: ``dtype``, whole ``shape``, and ``pieces``: file to [offsets, sizes]."""


class Box(NamedTuple):
    """A part of a tensor: where it begins along each axis, and how long it is there."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return 0 in self.size


class Read(NamedTuple):
    """Some of one piece of ``name``: the shape of the piece, where it is in that, and where it goes in the target."""

    name: str
    held: list[int]
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def is_cut(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors may be in parts on several ranks."""
    return ranks.world() > 1 and any(map(_is_dtensor, tensors.values()))


def box_of(tensor: Any) -> Box:
    """The part of a tensor that is in this rank's memory."""
    if not _is_dtensor(tensor):
        return Box((0,) * tensor.ndim, tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(p.is_partial() for p in tensor.placements):
        raise ValueError("the ranks hold summands of a tensor, not parts of it")
    size, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Box(tuple(start), tuple(size))


def writes(tensor: Any) -> bool:
    """Whether it is this rank that writes its part: of the ranks that hold the same part, the first one does."""
    if not _is_dtensor(tensor):
        return ranks.leads()
    place = tensor.device_mesh.get_coordinate()
    if place is None or box_of(tensor).is_empty or not _has_first(tensor.device_mesh):
        return False
    return all(at == 0 or not p.is_replicate() for p, at in zip(tensor.placements, place, strict=True))


def describe(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What this rank writes of each tensor, without the names of files: dtype, whole shape, and [offsets, sizes]."""
    found = {}
    for name, tensor in tensors.items():
        box = box_of(tensor) if writes(tensor) else None
        part = None if box is None else [list(box.start), list(box.size)]
        found[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "piece": part}
    return found


def join(parts: Sequence[Mapping[str, Entry]], files: Sequence[str]) -> dict[str, Entry]:
    """The layouts of all tensors from what every rank says of its own, in the order of the ranks.

    Raises:
        ValueError: the ranks do not hold the same tensors, or their parts of one are not the boxes of a grid.
    """
    for rank, part in enumerate(parts):
        if part.keys() != parts[0].keys():
            raise ValueError(f"rank {rank} has other tensors than rank 0: {sorted(part.keys() ^ parts[0].keys())[:3]}")
    found = {}
    for name, first in parts[0].items():
        pieces = {file: part[name]["piece"] for file, part in zip(files, parts, strict=True) if part[name]["piece"]}
        layout = {"dtype": first["dtype"], "shape": first["shape"], "pieces": pieces}
        if fault := why_not_whole(layout):
            raise ValueError(f"{name}: {fault}")
        found[name] = layout
    return found


def why_not_whole(layout: Any) -> str:
    """What keeps the pieces of a layout from being the boxes of a grid that fills the tensor; empty when they are."""
    if not isinstance(layout, dict) or layout.keys() != {"dtype", "shape", "pieces"}:
        return "no dtype, shape and pieces"
    shape, pieces = layout["shape"], layout["pieces"]
    if layout["dtype"] not in DTYPES.values() or not _are_lengths(shape) or not isinstance(pieces, dict):
        return f"dtype {layout['dtype']!r}, shape {shape!r}"
    boxes = set()
    for file, piece in pieces.items():
        paired = isinstance(piece, list) and len(piece) == 2
        if not (paired and all(_are_lengths(p) and len(p) == len(shape) for p in piece)):
            return f"the piece {piece!r} in {file}"
        boxes.add(Box(tuple(piece[0]), tuple(piece[1])))
    if len(boxes) != len(pieces):
        return "the same piece is in several files"
    starts = [sorted({box.start[axis] for box in boxes}) for axis in range(len(shape))]
    lengths = [{a: b - a for a, b in pairwise([*s, n])} for s, n in zip(starts, shape, strict=True)]
    fit = all(box.size == tuple(at[a] for at, a in zip(lengths, box.start, strict=True)) for box in boxes)
    filled = len(boxes) == prod(map(len, starts)) and all(s[0] == 0 for s in starts if s)
    if not fit or not (filled and boxes if prod(shape) else not boxes):
        return "its pieces do not fill it"
    return ""


def size_of(entry: Entry, size: Sequence[int]) -> int:
    """Bytes of a box of this size of a tensor."""
    return prod(size) * ITEM_BYTES[entry["dtype"]]


def needed(name: str, layout: Entry, wanted: Box) -> dict[str, Read]:
    """What to read from which file to fill the part ``wanted`` of a tensor."""
    reads = {}
    for file, (start, size) in layout["pieces"].items():
        first = [max(a, b) for a, b in zip(start, wanted.start, strict=True)]
        last = [min(a + n, b + m) for a, n, b, m in zip(start, size, wanted.start, wanted.size, strict=True)]
        if all(a < b for a, b in zip(first, last, strict=True)):
            source = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, start, strict=True))
            target = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, wanted.start, strict=True))
            reads[file] = Read(name, size, source, target)
    return reads


def shard_name(group: str, rank: int) -> str:
    """The file of a group's parts that ``rank`` holds."""
    return f"{group}-{rank + 1:05d}-of-{ranks.world():05d}.safetensors"


def _has_first(mesh: Any) -> bool:
    """Whether rank 0 is one of a tensor's ranks: under tensor parallelism several groups of ranks may hold the same."""
    return bool((mesh.mesh == 0).any())


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # its class is slow to import, and one process needs none


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
