"""Rows, items, responses and pairs that a step left out, and why: one record for all steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

FILE = "dropped.jsonl"
"""The file in which a run lists its drops."""

OLD_FILE = "losses.jsonl"
"""The name of that file in run folders of earlier versions."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Something that was read but is not used, or not used as it was read.

    Attributes:
        where: ``file:line`` of the source row.
        reason: a short code, counted in reports; ``docs/data.md`` and ``docs/tokens.md`` list them all.
        detail: which part of the item, and figures.
        unit: what was dropped or cut. The drop of a row or an item covers its responses and pairs; that of a response
            is followed by one for each pair that is lost with it.
        action: ``dropped``: left out; ``cut``: kept, but shortened or altered.
        stage: the step that left it out, as ``dropped.jsonl`` names it.
    """

    where: str
    item_id: str
    reason: str
    detail: str = ""
    unit: Literal["row", "item", "response", "pair"] = "item"
    action: Literal["dropped", "cut"] = "dropped"
    stage: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether a complete row or item was dropped, not only a part of it."""
        return self.unit in ("row", "item") and self.action == "dropped"

    def line(self) -> dict[str, Any]:
        """One line of ``dropped.jsonl``."""
        facts = {"where": self.where, "item_id": self.item_id, "reason": self.reason, "detail": self.detail}
        return facts | {"stage": self.stage, "action": self.action, "unit": self.unit}


def with_stage(stage: str, drops: Iterable[Drop]) -> list[Drop]:
    """The same drops with their stage set."""
    return [replace(drop, stage=stage) for drop in drops]


def counts(drops: Iterable[Drop]) -> dict[str, dict[str, int]]:
    """Drops counted by reason, in three groups: ``dropped`` (rows and items), ``parts`` (single responses or pairs of
    kept items) and ``cut``."""
    by_group: dict[str, Counter[str]] = {"dropped": Counter(), "parts": Counter(), "cut": Counter()}
    for drop in drops:
        by_group["cut" if drop.action == "cut" else "dropped" if drop.is_complete else "parts"][drop.reason] += 1
    return {name: dict(counter.most_common()) for name, counter in by_group.items()}
