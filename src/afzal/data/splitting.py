"""Split off a held-out part that shares no prompt with the rest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from afzal.records import Item, prompt_key


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split items into (training items, evaluation items), both in the given order.

    All items of one group (:func:`afzal.records.prompt_key`) go to the same side. The evaluation share is ``fraction``
    of the *items*, on average over seeds: a group is held out if its draw, fixed by its content and the seed, is below
    ``fraction``. So more rows or another order move no item. Two rules keep a few large groups from dominating the
    evaluation: a group larger than the whole share is not held out while there is a smaller one, and if more than twice
    the share would be held out, groups stay in training, those with the largest draws first. With two or more groups
    and 0 < fraction < 1, neither side is empty.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be from 0 to 1, not {fraction}")
    keys = [prompt_key(item) for item in items]
    held_out = _held_out(Counter(keys), fraction, seed)
    train = [item for item, key in zip(items, keys, strict=True) if key not in held_out]
    return train, [item for item, key in zip(items, keys, strict=True) if key in held_out]


def _held_out(sizes: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """The groups to hold out, given the sizes of all groups."""
    if fraction in (0.0, 1.0) or len(sizes) < 2:
        return {key for key in sizes if _draw(key, seed) < fraction}
    target = fraction * sum(sizes.values())
    keys = sorted(sizes, key=lambda key: (_draw(key, seed), key))
    small = [key for key in keys if sizes[key] <= max(1.0, target)]
    held_out: set[str] = set()
    total = 0
    for key in small:
        if _draw(key, seed) >= fraction or (held_out and total + sizes[key] > 2 * target):
            break
        held_out.add(key)
        total += sizes[key]
    if not held_out:
        return {small[0] if small else min(keys, key=lambda key: sizes[key])}
    return held_out if len(held_out) < len(sizes) else held_out - {keys[-1]}


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) fixed by the key and the seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
