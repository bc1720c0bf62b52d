"""The prompts of samples in the form of their rows, so that a run's samples are data like any other."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal.data.remap import with_media
from afzal.records import Item, Media, template_fields, turns_to_row
from afzal.tokens import Speaker, Tree


def prompt_columns(
    trees: Sequence[Tree],
    items: Iterable[Item],
    speaker: Speaker,
    previews: Mapping[str, Mapping[str, str]],
    run: Path,
) -> list[dict[str, Any]]:
    """The prompt columns of each tree: ``prompt``, a text or messages, and the row's template fields (``tools`` ...).

    Args:
        trees: made from some of ``items``, with their ids.
        previews: by SHA-256, the small copy of an image or a sound below ``run``, which the prompt names instead.
    """
    items_by_id: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        items_by_id[item.id].append(item)

    def with_preview(media: Media) -> Media:
        if media.sha256 not in previews:
            return media
        name = previews[media.sha256]["file"]
        content = (run / name).read_bytes()
        return replace(media, sha256=hashlib.sha256(content).hexdigest(), name=name, path=str(run / name), data=None)

    sources = [_item(tree, items_by_id[tree.item_id], speaker) for tree in trees]
    return [
        {"prompt": turns_to_row(with_media(i, with_preview).prompt), **template_fields(i)} if i else {} for i in sources
    ]


def _item(tree: Tree, items: Sequence[Item], speaker: Speaker) -> Item | None:
    """The tree's item among those with its id. If rows share an id, the one whose prompt has the tree's tokens; None if
    that prompt was truncated."""
    if len(items) == 1:
        return items[0]
    candidates = speaker.prompt_trees(items)
    return next(
        (i for i, candidate in zip(items, candidates, strict=True) if candidate.prompt_key == tree.prompt_key), None
    )
