"""The rows of a page with their votes, for training and for ``afzal aggregate``."""

from __future__ import annotations

from pathlib import Path

from afzal import data


def export(folder: str | Path, path: str | Path) -> int:
    """Write the rows that have votes as Afzal rows, and return their number.

    Repeats and votes on gold rows have weight 0: they measure annotators and do not train.
    """
    items = [item for item in data.read(folder).items if item.votes]
    return data.write(items, path, "afzal") if items else 0
