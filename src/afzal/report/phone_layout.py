"""Layout on a phone: the width of drawings, and which tables become lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PHONE = 358
"""CSS pixels between the margins of a page on a phone; a drawing of this width shows letters at their normal size."""

_LETTERS, _FIRST = 44, 17  # letters of table text, with gaps, that fit across; at least these are for the first column


def is_wide(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
    """Whether a table is too wide for a phone; headings and names break at spaces.

    Args:
        rows: the text of each cell; of a cell with two lines, the longer one.
    """
    words = [max((len(word) for word in str(name).split()), default=0) for name in columns]
    for row in rows:
        words = [max(word, len(cell)) for word, cell in zip(words, row, strict=True)]
    return _FIRST + sum(word + 1 for word in words[1:]) > _LETTERS


def is_wide_of_two(columns: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]]) -> bool:
    """:func:`is_wide` for a table whose cells have a text and small print below it."""
    return is_wide(columns, ([max(cell, key=len) for cell in row] for row in rows))
