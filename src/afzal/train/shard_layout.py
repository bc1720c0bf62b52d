"""Which part of a tensor a rank holds, and how any number of ranks read tensors back from such parts.

A tensor is cut along its axes, so its pieces are the boxes of a grid. Each rank writes its own boxes, and reads what it
needs from the boxes that overlap it; it may be cut differently, or not at all. An unsharded tensor is assumed to be the
same on all ranks, and rank 0 writes it.
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
"""A manifest's entry for one tensor: ``dtype``, full ``shape``, and ``pieces``: file to [offsets, sizes]."""


class Box(NamedTuple):
    """A part of a tensor: its start and its length along each axis."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return 0 in self.size


class Read(NamedTuple):
    """A read from one piece of ``name``: the shape of the piece, the slices to read, and their place in the target."""

    name: str
    piece_shape: list[int]
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def may_be_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors may be sharded over several ranks."""
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


def is_writer(tensor: Any) -> bool:
    """Whether this rank writes its part: the first of the ranks that hold the same part does."""
    if not _is_dtensor(tensor):
        return ranks.leads()
    place = tensor.device_mesh.get_coordinate()
    if place is None or box_of(tensor).is_empty or not _has_first(tensor.device_mesh):
        return False
    return all(coordinate == 0 or not p.is_replicate() for p, coordinate in zip(tensor.placements, place, strict=True))


def describe(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What this rank writes of each tensor, without file names: dtype, full shape, and [offsets, sizes]."""
    entries = {}
    for name, tensor in tensors.items():
        box = box_of(tensor) if is_writer(tensor) else None
        part = None if box is None else [list(box.start), list(box.size)]
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "piece": part}
    return entries


def join_layouts(parts: Sequence[Mapping[str, Entry]], files: Sequence[str]) -> dict[str, Entry]:
    """Join the descriptions of all ranks, in rank order, to the layouts of all tensors.

    Raises:
        ValueError: the ranks do not hold the same tensors, or the parts of a tensor are not the boxes of a grid.
    """
    for rank, part in enumerate(parts):
        if part.keys() != parts[0].keys():
            raise ValueError(f"rank {rank} has other tensors than rank 0: {sorted(part.keys() ^ parts[0].keys())[:3]}")
    layouts = {}
    for name, first in parts[0].items():
        pieces = {file: part[name]["piece"] for file, part in zip(files, parts, strict=True) if part[name]["piece"]}
        layout = {"dtype": first["dtype"], "shape": first["shape"], "pieces": pieces}
        if fault := layout_fault(layout):
            raise ValueError(f"{name}: {fault}")
        layouts[name] = layout
    return layouts


def layout_fault(layout: Any) -> str:
    """Why the pieces of a layout are not the boxes of a grid that fills the tensor; empty if they are."""
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
    fit = all(box.size == tuple(length_at[a] for length_at, a in zip(lengths, box.start, strict=True)) for box in boxes)
    filled = len(boxes) == prod(map(len, starts)) and all(s[0] == 0 for s in starts if s)
    if not fit or not (filled and boxes if prod(shape) else not boxes):
        return "its pieces do not fill it"
    return ""


def size_of(entry: Entry, size: Sequence[int]) -> int:
    """Bytes of a box of this size."""
    return prod(size) * ITEM_BYTES[entry["dtype"]]


def overlapping_reads(name: str, layout: Entry, target_box: Box) -> dict[str, Read]:
    """The reads that fill the part ``target_box`` of a tensor, by file."""
    reads = {}
    for file, (start, size) in layout["pieces"].items():
        first = [max(a, b) for a, b in zip(start, target_box.start, strict=True)]
        last = [min(a + n, b + m) for a, n, b, m in zip(start, size, target_box.start, target_box.size, strict=True)]
        if all(a < b for a, b in zip(first, last, strict=True)):
            source = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, start, strict=True))
            target = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, target_box.start, strict=True))
            reads[file] = Read(name, size, source, target)
    return reads


def shard_name(group: str, rank: int) -> str:
    """The file name of the parts of a group that ``rank`` holds."""
    return f"{group}-{rank + 1:05d}-of-{ranks.world():05d}.safetensors"


def _has_first(mesh: Any) -> bool:
    """Whether rank 0 is in the mesh: under tensor parallelism several groups of ranks may hold the same tensor."""
    return bool((mesh.mesh == 0).any())


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # importing DTensor is slow, and a single process needs none


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
