"""A held-out part that shares no prompt with the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from afzal.records import Item, prompt_key


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(training items, evaluation items), both in the given order.

    All items of one group (:func:`afzal.records.prompt_key`) go to the same side. The side depends on the group's
    content and the seed alone, so more rows or another order move no item. The evaluation share is ``fraction`` of the
    groups on average; with two groups or more and 0 < fraction < 1, neither side is empty.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be from 0 to 1, not {fraction}")
    keys = [prompt_key(item) for item in items]
    draws = {key: _draw(key, seed) for key in dict.fromkeys(keys)}
    held_out = {key for key, draw in draws.items() if draw < fraction}
    if 0.0 < fraction < 1.0 and len(draws) > 1:
        ordered = sorted(draws, key=lambda key: (draws[key], key))
        held_out = (held_out or {ordered[0]}) if len(held_out) < len(draws) else held_out - {ordered[-1]}
    train = [item for item, key in zip(items, keys, strict=True) if key not in held_out]
    return train, [item for item, key in zip(items, keys, strict=True) if key in held_out]


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) fixed by the key and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
