"""Facts of many items in little memory: numbers in arrays, names end to end, repeated values found by sorting."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, compress, repeat
from typing import Any

from afzal.stats.intervals import Cluster

SHOWN_IDS = 20


class Names:
    """Texts by number, a few bytes each beyond their own."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("Q")

    def append(self, name: str) -> None:
        """The next text."""
        self.extend([name])

    def extend(self, names: Sequence[str]) -> None:
        """The next texts."""
        texts = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends.extend(list(accumulate(map(len, texts), initial=len(self._bytes)))[1:])
        self._bytes += b"".join(texts)

    def __getitem__(self, at: int) -> str:
        start = self._ends[at - 1] if at else 0
        return self._bytes[start : self._ends[at]].decode("utf-8", "surrogatepass")

    def first(self, places: Iterable[int]) -> list[str]:
        """The first different texts at these places, as many as are shown."""
        shown = FirstIds()
        for at in places:
            shown.add(self[at])
            if shown.full:
                break
        return list(shown)


class FirstIds:
    """The first different ids, as many as are shown."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    @property
    def full(self) -> bool:
        """Whether no further one is kept."""
        return len(self._ids) >= SHOWN_IDS

    def add(self, name: str) -> None:
        """One more."""
        if not self.full:
            self._ids[name] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)


def extend(columns: Sequence[array[int] | array[float] | bytearray], rows: Iterable[Sequence[Any]]) -> None:
    """Put more rows at the end of columns, one value of a row in each."""
    for column, values in zip(columns, zip(*rows, strict=True), strict=False):  # no rows have no columns
        column.extend(values)


def repeated(column: Sequence[int]) -> Iterator[list[int]]:
    """The places that hold one value, ascending, for every value that two or more places hold."""
    if len(set(column)) == len(column):
        return
    order = sorted(range(len(column)), key=column.__getitem__)
    start = 0
    for n in range(1, len(order) + 1):
        if n == len(order) or column[order[n]] != column[order[start]]:
            if n - start > 1:
                yield order[start:n]
            start = n


def clusters(keys: Sequence[int], values: Sequence[float], weights: Sequence[float] = ()) -> list[Cluster]:
    """Rows added up by the prompt that each belongs to, as :func:`afzal.stats.intervals.clustered` does.

    Prompts of one row share their few different clusters, so that a million take little memory.
    """
    found: list[Cluster] = []
    many = list(repeated(keys))
    alone = bytearray(b"\x01") * len(keys)
    for places in many:
        total = summed = square = 0.0
        for at in places:
            alone[at], weight = 0, weights[at] if weights else 1.0
            total, summed, square = total + weight * values[at], summed + weight, square + weight * weight
        found.append(Cluster(total, summed, square))
    rows = lambda: compress(zip(map(float, values), weights or repeat(1.0), strict=False), alone)  # noqa: E731
    seen = {(value, weight): Cluster(weight * value, weight, weight * weight) for value, weight in set(rows())}
    return found + [seen[row] for row in rows()]
