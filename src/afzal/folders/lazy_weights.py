"""Stand-ins for a folder's weights that have not been read, and reading any part of a weight.

A library builds a model from tensors that take no memory: each large one is a single number, expanded to its shape.
Whatever the library renames, the storage of that number identifies a weight's tensor in the files. If the library
stacks or concatenates tensors, such as the experts of a mixture, a new number represents all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afzal.errors import AfzalError
from afzal.folders.guard import guarded
from afzal.folders.kinds import weight_files
from afzal.folders.safetensors_header import TensorInfo

_SMALL = 1 << 10  # numbers; smaller tensors are read immediately
_CHUNK = 1 << 24  # numbers that are read before they are copied
_REOPEN_AFTER = (
    1 << 26
)  # numbers after which a file is reopened: the data read from it stays in memory while it is open
_JOINS = {"MergeModulelist", "Concatenate"}  # transformers does these with only torch.stack and torch.cat


class Piece(NamedTuple):
    """A tensor in the files as part or all of a weight.

    Attributes:
        start, size: the box of the weight that it fills, in the weight's own dimensions.
        added: dimensions of the weight that the tensor lacks, such as the expert index; the box has size 1 there.
    """

    file: Path
    name: str
    start: tuple[int, ...]
    size: tuple[int, ...]
    added: frozenset[int] = frozenset()

    def moved(self, dim: int, by: int) -> Piece:
        """The piece, shifted by ``by`` rows in one dimension of the weight."""
        return self._replace(start=(*self.start[:dim], self.start[dim] + by, *self.start[dim + 1 :]))

    def stacked(self, dim: int, index: int) -> Piece:
        """The piece at index ``index`` of a new dimension of the weight."""
        added = {d + (d >= dim) for d in self.added} | {dim}
        start, size = (*self.start[:dim], index, *self.start[dim:]), (*self.size[:dim], 1, *self.size[dim:])
        return self._replace(start=start, size=size, added=frozenset(added))


Place = tuple[Piece, ...]
"""The place of a weight: tensors in the files that fill it without overlap."""


class LazyWeights:
    """The tensors of an inspected folder as passed to a library, in float32; large ones are not read.

    Inside :meth:`joining`, tensors that are stacked or concatenated stay unread.

    Raises:
        AfzalError: some are packed, so they must be read completely.
    """

    def __init__(self, folder: str) -> None:
        import torch

        self.folder = folder
        self.stored: dict[str, TensorInfo] = {}
        self.tensors: dict[str, Any] = {}
        self._registered: dict[int, tuple[Any, Place]] = {}  # keeps the tensor, so that its storage is not reused
        for file, header in weight_files(folder).items():
            self.stored |= header
            if packed := next(
                (name for name, t in header.items() if t.packed or not t.dtype.startswith(("F", "BF"))), ""
            ):
                raise AfzalError(f"{packed} is in the number format {header[packed].dtype}, which is read as a whole")
            small = [name for name, t in header.items() if t.size < _SMALL]
            with guarded(folder), _open_file(file) as reader:
                values = {name: reader.get_tensor(name).float().clone() for name in small}
            for name, t in header.items():
                tensor = values[name] if name in values else torch.zeros(()).expand(t.shape)
                self.tensors[name] = tensor
                self._register(tensor, (Piece(file, name, (0,) * len(t.shape), tuple(t.shape)),))

    def _register(self, tensor: Any, place: Place) -> Any:
        self._registered[tensor.untyped_storage().data_ptr()] = tensor, place
        return tensor

    def place(self, tensor: Any) -> Place | None:
        """The place of this tensor in the files; None if it is not one of theirs, or only part of one."""
        registered, place = self._lookup(tensor)
        if registered is None or registered.shape != tensor.shape or tensor.storage_offset():
            return None
        return place if tensor.stride() == registered.stride() else None

    def _lookup(self, tensor: Any) -> tuple[Any, Place]:
        missing: tuple[Any, Place] = (None, ())
        return self._registered.get(tensor.untyped_storage().data_ptr(), missing) if tensor.numel() else missing

    def is_unread(self, tensor: Any) -> bool:
        """Whether the tensor is only a stand-in for unread values."""
        registered, _ = self._lookup(tensor)
        return registered is not None and registered.numel() >= _SMALL

    def read(self, tensor: Any) -> Any:
        """The full tensor, read if necessary.

        Raises:
            AfzalError: its file cannot be read.
        """
        if not self.is_unread(tensor):
            return tensor
        place = self.place(tensor)
        assert place is not None
        return _read_weight(tensor.shape, place)

    def joining(self) -> Any:
        """A context in which ``torch.stack`` and ``torch.cat`` of unread tensors give an unread tensor.

        Applies only to the current thread.
        """
        import torch
        from torch.overrides import TorchFunctionMode

        joins = {torch.stack: self._stacked, torch.cat: self._concatenated}

        class Joining(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                joined = joins[func](*args, **(kwargs or {})) if func in joins else None
                return func(*args, **(kwargs or {})) if joined is None else joined

        return Joining()

    def _stacked(self, tensors: Sequence[Any], dim: int = 0, **options: Any) -> Any:
        places = self._places(tensors) if not options and dim >= 0 else None
        if places is None or len({t.shape for t in tensors}) > 1:
            return None
        shape = [*tensors[0].shape]
        shape.insert(dim, len(tensors))
        return self._joined(shape, [p.stacked(dim, k) for k, place in enumerate(places) for p in place])

    def _concatenated(self, tensors: Sequence[Any], dim: int = 0, **options: Any) -> Any:
        places = self._places(tensors) if not options and dim >= 0 else None
        if places is None or len({(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}) > 1:
            return None
        shape, pieces = [*tensors[0].shape], []
        shape[dim] = 0
        for tensor, place in zip(tensors, places, strict=True):
            pieces += [p.moved(dim, shape[dim]) for p in place]
            shape[dim] += tensor.shape[dim]
        return self._joined(shape, pieces)

    def _places(self, tensors: Sequence[Any]) -> list[Place] | None:
        """The places of all of them; None if one is not in the files unchanged."""
        places = [self.place(t) if t.dim() else None for t in tensors]
        return [p for p in places if p is not None] if places and None not in places else None

    def _joined(self, shape: Sequence[int], pieces: Sequence[Piece]) -> Any:
        import torch

        place, joined = tuple(pieces), torch.zeros(()).expand(shape)
        return self._register(joined if joined.numel() >= _SMALL else _read_weight(shape, place), place)

    def refuse_changed(self, model: Any, fresh: Collection[str] = ()) -> None:
        """Require that every weight and buffer of a model is either already read, or in the files unchanged, as one
        tensor or as several joined ones.

        Args:
            fresh: names of weights that the files may lack.

        Raises:
            AfzalError: the library computes one from others, or changes it.
        """
        conversions = getattr(model, "_weight_conversions", None)
        operations = {type(op).__name__ for c in conversions or () for op in getattr(c, "operations", None) or ()}
        if conversions is None or operations - _JOINS:
            raise AfzalError(f"{type(model).__name__} computes its weights from the tensors in {self.folder}")
        for name, p in model.named_parameters():
            if name not in fresh and self.place(p) is None:
                raise AfzalError(f"{name} is not an unchanged tensor in {self.folder}")
        for name, b in model.named_buffers():
            if self.is_unread(b):
                raise AfzalError(f"{name} is a large buffer in the files")


def fill(places: Mapping[str, tuple[Place, Sequence[slice], Any]]) -> None:
    """Read parts of weights into existing tensors, file by file; this takes a few megabytes of extra memory.

    Args:
        places: under any name: a weight's place, the part of it to read, and a tensor of that part's size.

    Raises:
        AfzalError: a file cannot be read.
    """
    by_file: dict[Path, list[tuple[str, Sequence[slice], Any]]] = {}
    for place, part, output in places.values():
        for piece in place:
            if (common := _overlap(piece, part)) is not None:
                source, target = common
                by_file.setdefault(piece.file, []).append((piece.name, source, output[target]))
    for file, requests in by_file.items():
        n_read = 0
        reader: Any = None
        for name, part, output in requests:
            for rows, target in _row_chunks(part, output):
                with guarded(str(file.parent)):
                    if reader is None or n_read > _REOPEN_AFTER:
                        reader, n_read = _open_file(file), 0
                    target.copy_(reader.get_slice(name)[tuple(rows)].float())
                n_read += target.numel()


def _read_weight(shape: Sequence[int], place: Place) -> Any:
    """Read the weight of that shape at that place."""
    import torch

    output = torch.empty(tuple(shape))
    fill({"": (place, [slice(0, n) for n in output.shape], output)})
    return output


def _overlap(piece: Piece, part: Sequence[slice]) -> tuple[list[slice], tuple[slice | int, ...]] | None:
    """The overlap of a piece and a part of its weight, as slices of the piece and as an index into the part; None if
    there is none."""
    source: list[slice] = []
    target: list[slice | int] = []
    for dim, (start, n, wanted_slice) in enumerate(zip(piece.start, piece.size, part, strict=True)):
        first, end = max(start, wanted_slice.start), min(start + n, wanted_slice.stop)
        if first >= end:
            return None
        if dim in piece.added:
            target.append(first - wanted_slice.start)
        else:
            source.append(slice(first - start, end - start))
            target.append(slice(first - wanted_slice.start, end - wanted_slice.start))
    return source, tuple(target)


def _row_chunks(part: Sequence[slice], output: Any) -> Iterator[tuple[list[slice], Any]]:
    """The part in row slices that are small enough to read in one step, each with its slice of the target."""
    step = max(1, _CHUNK // max(1, output[:1].numel()))
    first = part[0].start
    for start in range(0, len(output), step):
        end = min(start + step, len(output))
        yield [slice(first + start, first + end), *part[1:]], output[start:end]


def _open_file(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")
