"""A folder's weights that nobody has read yet: what stands in for them, and the reading of any part of one.

A library builds a model of tensors that take no memory: of each large one there is a single number, repeated as often
as its shape asks for. Whatever the library renames, the storage of that number tells which tensor of the files a weight
is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afzal.errors import AfzalError
from afzal.folders.guard import guarded
from afzal.folders.headers import Stored
from afzal.folders.kinds import weight_files

_SMALL = 1 << 10  # numbers; smaller tensors are read whole at once
_AT_ONCE = 1 << 24  # numbers that are read before they are copied
_OPEN = 1 << 26  # numbers after which a file is opened anew: what was read of it is in memory as long as it is open


class Place(NamedTuple):
    """Where a weight lies: its file, and its name in there."""

    file: Path
    name: str


class Unread:
    """The tensors of an inspected folder as a library gets them, in float32; large ones are not read.

    Raises:
        AfzalError: some are packed, so that they have to be read as a whole.
    """

    def __init__(self, folder: str) -> None:
        import torch

        self.folder = folder
        self.stored: dict[str, Stored] = {}
        self.tensors: dict[str, Any] = {}
        self._places: dict[int, Place] = {}
        for file, held in weight_files(folder).items():
            self.stored |= held
            if packed := next(
                (name for name, t in held.items() if t.packed or not t.dtype.startswith(("F", "BF"))), ""
            ):
                raise AfzalError(f"{packed} is in the number format {held[packed].dtype}, which is read as a whole")
            small = [name for name, t in held.items() if t.size < _SMALL]
            with guarded(folder), _open(file) as reader:
                read = {name: reader.get_tensor(name).float().clone() for name in small}
            for name, t in held.items():
                tensor = read[name] if name in read else torch.zeros(()).expand(t.shape)
                self.tensors[name] = tensor
                self._places[tensor.untyped_storage().data_ptr()] = Place(file, name)

    def place(self, tensor: Any) -> Place | None:
        """Where the files have what this tensor stands for; None of a tensor that is none of theirs, or not whole."""
        found = self._places.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        if found is None or self.tensors[found.name].shape != tensor.shape or tensor.storage_offset():
            return None
        return found if tensor.stride() == self.tensors[found.name].stride() else None

    def is_unread(self, tensor: Any) -> bool:
        """Whether the tensor holds a number that only stands in for others."""
        place = self._places.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        return place is not None and self.stored[place.name].size >= _SMALL

    def read(self, tensor: Any) -> Any:
        """The tensor whole, read if it has not been.

        Raises:
            AfzalError: its file cannot be read.
        """
        import torch

        if not self.is_unread(tensor):
            return tensor
        place, into = self.place(tensor), torch.empty(tensor.shape)
        assert place is not None
        fill({place.name: (place, [slice(0, n) for n in into.shape], into)})
        return into

    def refuse_changed(self, model: Any, fresh: Collection[str] = ()) -> None:
        """Make sure that every weight and buffer of a model is a tensor of the files as it is, or is there already.

        Args:
            fresh: names of weights that the files may lack.

        Raises:
            AfzalError: the library computes one from others, or changes it.
        """
        conversions = getattr(model, "_weight_conversions", None)
        if conversions is None or any(getattr(c, "operations", None) for c in conversions):
            raise AfzalError(f"{type(model).__name__} is made of the tensors in {self.folder} by computing")
        for name, p in model.named_parameters():
            if name not in fresh and self.place(p) is None:
                raise AfzalError(f"{name} is not a tensor in {self.folder} as it is")
        for name, b in model.named_buffers():
            if self.is_unread(b):
                raise AfzalError(f"{name} is a large buffer in the files")


def fill(places: Mapping[str, tuple[Place, Sequence[slice], Any]]) -> None:
    """Read parts of tensors into tensors that are there, file by file; memory grows by a few megabytes.

    Args:
        places: by any name: where a tensor lies, the part of it, and a contiguous tensor of that part's size.

    Raises:
        AfzalError: a file cannot be read.
    """
    by_file: dict[Path, list[tuple[str, Sequence[slice], Any]]] = {}
    for place, part, into in places.values():
        by_file.setdefault(place.file, []).append((place.name, part, into))
    for file, wanted in by_file.items():
        read = 0
        reader: Any = None
        for name, part, into in wanted:
            for rows, target in _by_rows(part, into):
                with guarded(str(file.parent)):
                    if reader is None or read > _OPEN:
                        reader, read = _open(file), 0
                    target.copy_(reader.get_slice(name)[tuple(rows)].float())
                read += target.numel()


def _by_rows(part: Sequence[slice], into: Any) -> Iterator[tuple[list[slice], Any]]:
    """The part in slices of rows that are small enough to be read at once, each with its piece of the target."""
    step = max(1, _AT_ONCE // max(1, into[:1].numel()))
    first = part[0].start
    for start in range(0, len(into), step):
        end = min(start + step, len(into))
        yield [slice(first + start, first + end), *part[1:]], into[start:end]


def _open(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")
