"""The record of a row that was dropped or shortened on its way to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Loss:
    """What was lost and why.

    Attributes:
        where: ``file:line`` of the source row.
        reason: a short code, counted in reports; see ``docs/tokens.md`` for all of them.
        detail: which part of the item, and figures.
        action: ``dropped`` is gone; ``cut`` was kept, but shortened or altered.
        unit: what was dropped or cut. An item's loss covers its responses and pairs; a response's loss is followed by
            one of each pair it took with it.
    """

    item_id: str
    where: str
    reason: str
    detail: str = ""
    action: Literal["dropped", "cut"] = "dropped"
    unit: Literal["item", "response", "pair"] = "item"
