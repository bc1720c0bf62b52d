"""What a phone has room for: the width of its drawings, and the tables whose rows are lists there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PHONE = 358
"""CSS pixels that a page on a phone has between its margins; a drawing of this width has letters of their own size."""

_LETTERS, _FIRST = 44, 17  # of a table's text across these pixels with its gaps; those of its first column, at least


def is_wide(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
    """Whether a table does not fit on a phone; headings and names break at spaces.

    Args:
        rows: what is shown in each cell; of a cell of two lines the longer one.
    """
    words = [max((len(word) for word in str(name).split()), default=0) for name in columns]
    for row in rows:
        words = [max(word, len(cell)) for word, cell in zip(words, row, strict=True)]
    return _FIRST + sum(word + 1 for word in words[1:]) > _LETTERS


def is_wide_of_two(columns: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> bool:
    """The same of a table whose cells are a text and what stands in small print below it."""
    return is_wide(columns, ([max(cell, key=len) for cell in row] for row in rows))
