"""Cut trees that are too long: the prompt once for all its branches, and no response to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afzal.drops import Drop
from afzal.records import Item
from afzal.tokens.tree import Branch, Tree


def budget(prompt: int, longest: int, max_tokens: int) -> tuple[int, int]:
    """The number of tokens that the prompt and any response may keep, given their lengths.

    Responses take precedence: up to half of ``max_tokens``, or what the prompt leaves if that is more. The prompt gets
    the rest. Both are at least 1 and their sum is at most ``max_tokens`` (>= 2).
    """
    response = min(longest, max(max_tokens - prompt, max_tokens // 2))
    return min(prompt, max_tokens - response), response


def truncate_tree(
    item: Item, prompt: Sequence[int], branches: Mapping[int, Branch], max_tokens: int, bos: int | None
) -> tuple[Tree, list[Drop]]:
    """The item's tree, cut so that every path has at most ``max_tokens`` tokens, and the cuts.

    A prompt loses its left end (its BOS stays), a response its right end, including its EOS, since it did not end
    there.

    Args:
        branches: by the index of the response in the item.
    """
    longest = max(len(b.ids) for b in branches.values())
    for_prompt, for_response = budget(len(prompt), longest, max_tokens)
    cuts = []
    if for_prompt < len(prompt):
        cuts.append(_cut_record(item, "prompt_cut", f"{for_prompt} of {len(prompt)} prompt tokens kept", "item"))
    for k, branch in branches.items():
        if for_response < len(branch.ids):
            detail = f"response {k}: {for_response} of {len(branch.ids)} tokens kept, no EOS"
            cuts.append(_cut_record(item, "response_cut", detail, "response"))
    short = tuple(Branch(b.ids[:for_response], b.scored[:for_response]) for b in branches.values())
    return Tree(item.id, np.asarray(truncate_prompt(prompt, for_prompt, bos), dtype=np.int32), short), cuts


def truncate_prompt(ids: Sequence[int], limit: int, bos: int | None) -> list[int]:
    """The last ``limit`` ids at most; a BOS at the beginning is kept."""
    if len(ids) <= limit:
        return list(ids)
    head = 1 if ids[0] == bos and limit > 1 else 0
    return [*ids[:head], *ids[len(ids) - limit + head :]]


def _cut_record(item: Item, reason: str, detail: str, unit: str) -> Drop:
    return Drop(item.where, item.id, reason, detail, "item" if unit == "item" else "response", "cut")
