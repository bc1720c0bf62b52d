"""The rows of a page with their votes, for training and for ``afzal aggregate``."""

from __future__ import annotations

from pathlib import Path

from afzal import data


def export(folder: str | Path, path: str | Path) -> int:
    """Write the rows that have votes as Afzal rows, and return how many.

    Repeats, and votes on rows of known truth, stand there with weight 0: they tell about annotators and do not train.
    """
    items = [item for item in data.read(folder).items if item.votes]
    return data.write(items, path, "afzal") if items else 0
