"""Facts about many items in little memory: numbers in columns, concatenated names, repeated values by sorting."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, repeat
from tempfile import TemporaryFile
from typing import IO, Any

from afzal.stats.intervals import Cluster

SHOWN_IDS = 20

_HELD = 2**20  # bytes of a column kept in memory
_MANY = 2**17  # rows above which a set takes more memory and time than numpy's sorting


class Column(Sequence[Any]):
    """A sequence of numbers with a type code of :mod:`array`. Beyond a mebibyte they go to a temporary file, so a
    million rows take as much memory as a hundred thousand."""

    def __init__(self, code: str, values: Iterable[Any] = ()) -> None:
        self._code, self._new, self._n_on_disk = code, array(code, values), 0
        self._file: IO[bytes] | None = None

    def append(self, value: float) -> None:
        """Add a number at the end."""
        self.extend((value,))

    def extend(self, values: Sequence[Any]) -> None:
        """Add numbers at the end; for a column of bytes also as :class:`bytes`."""
        if isinstance(values, bytes):
            self._new.frombytes(values)
        else:
            self._new.extend(values)
        if len(self._new) * self._new.itemsize >= _HELD:
            self._write_to_disk()

    def read(self, start: int = 0, stop: int | None = None) -> array[Any]:
        """A copy of the column or of a part of it."""
        stop = len(self) if stop is None else stop
        if self._file is None:
            return self._new[start:stop]
        size, part = self._new.itemsize, array(self._code, [0]) * (min(stop, len(self)) - start)
        n_written = max(0, min(stop, self._n_on_disk) - start)
        self._file.seek(start * size)
        self._file.readinto(memoryview(part).cast("B")[: n_written * size])  # pyright: ignore
        part[n_written:] = self._new[max(0, start - self._n_on_disk) : max(0, stop - self._n_on_disk)]
        return part

    def __len__(self) -> int:
        return self._n_on_disk + len(self._new)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("a column has no slices: read() gives a part of it")
        index = range(len(self))[index]  # handles negative positions, and raises beyond the ends
        if index >= self._n_on_disk:
            return self._new[index - self._n_on_disk]
        return self.read(index, index + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        step = _HELD // self._new.itemsize
        return chain.from_iterable(self.read(start, start + step) for start in range(0, len(self), step))

    def _write_to_disk(self) -> None:
        if self._file is None:
            self._file = TemporaryFile(prefix="afzal-")  # noqa: SIM115 - it stays open as long as the column exists
        self._file.seek(0, 2)
        self._file.write(self._new)
        self._n_on_disk += len(self._new)
        self._new = array(self._code)


class Names:
    """Texts by number, with a few bytes of overhead each."""

    def __init__(self) -> None:
        self._bytes, self._ends = Column("B"), Column("Q")

    def append(self, name: str) -> None:
        """Add a text at the end."""
        self.extend([name])

    def extend(self, names: Sequence[str]) -> None:
        """Add texts at the end."""
        texts = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends.extend(list(accumulate(map(len, texts), initial=len(self._bytes)))[1:])
        self._bytes.extend(b"".join(texts))

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._bytes.read(start, self._ends[index]).tobytes().decode("utf-8", "surrogatepass")

    def first(self, places: Iterable[int]) -> list[str]:
        """The first distinct texts at these places, as many as are shown."""
        shown = FirstIds()
        for place in places:
            shown.add(self[place])
            if shown.full:
                break
        return list(shown)


class FirstIds:
    """The first distinct ids, as many as are shown."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    @property
    def full(self) -> bool:
        """Whether no further ids are kept."""
        return len(self._ids) >= SHOWN_IDS

    def add(self, name: str) -> None:
        """Add an id."""
        if not self.full:
            self._ids[name] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)


def extend(columns: Sequence[Column | bytearray], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows to columns, one value of each row per column."""
    for column, values in zip(columns, zip(*rows, strict=True), strict=False):  # without rows, zip gives no columns
        column.extend(values)


def distinct(column: Column) -> int:
    """The number of distinct values."""
    if len(column) < _MANY:
        return len(set(column))
    import numpy as np

    values = np.asarray(column.read())
    values.sort()
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


def repeated(column: Column) -> Iterator[list[int]]:
    """For every value that occurs more than once, its places in ascending order."""
    if len(column) >= _MANY:
        yield from _repeated_of_many(column)
        return
    values = column.read()
    if len(set(values)) == len(values):
        return
    order = sorted(range(len(values)), key=values.__getitem__)
    start = 0
    for n in range(1, len(order) + 1):
        if n == len(order) or values[order[n]] != values[order[start]]:
            if n - start > 1:
                yield order[start:n]
            start = n


def _repeated_of_many(column: Column) -> Iterator[list[int]]:
    import numpy as np

    if distinct(column) == len(column):  # needs no order of the places, and half the memory
        return
    values = np.asarray(column.read())
    order = np.argsort(values, kind="stable")
    values = values[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    ends = np.append(starts[1:], len(values))
    del values
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        yield order[start:end].tolist()


def clusters(keys: Column, values: Sequence[float], weights: Column | None = None) -> list[Cluster]:
    """Rows summed by their prompt, as in :func:`afzal.stats.intervals.clustered`.

    Prompts with a single row share a few distinct cluster objects, so a million take little memory.
    """
    shared: list[Cluster] = []
    groups = list(repeated(keys))
    is_single = bytearray(b"\x01") * len(keys)
    all_weights = weights.read() if weights is not None and groups else None
    for places in groups:
        total = summed = square = 0.0
        for place in places:
            is_single[place], weight = 0, all_weights[place] if all_weights else 1.0
            total, summed, square = total + weight * values[place], summed + weight, square + weight * weight
        shared.append(Cluster(total, summed, square))
    rows = lambda: compress(zip(map(float, values), weights or repeat(1.0), strict=False), is_single)  # noqa: E731
    singles = {(value, weight): Cluster(weight * value, weight, weight * weight) for value, weight in set(rows())}
    return shared + [singles[row] for row in rows()]
