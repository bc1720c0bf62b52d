"""Which items stay on the same side of a split, if their source does not say."""

from __future__ import annotations

import hashlib
import json

from afzal.data.turns import answer_text, content_key
from afzal.records import Item, Message


def group_by_content(item: Item) -> str:
    """The group of an item, which must stay on one side of a split, if the prompt alone does not define it.

    Dialogues with the same opening stay together, since a later turn of one quotes the answers of an earlier one. Plain
    texts have no prompt to share.
    """
    if not isinstance(item.prompt, str):
        opening = next((m for m in item.prompt if m.role == "user"), Message("user", ""))
        key = content_key(opening.content)
        return _hashed("opening", key) if isinstance(key, str) else _hashed("opening_media", json.dumps(key))
    return "" if item.prompt.strip() or not item.responses else _hashed("text", answer_text(item.responses[0].turns))


def _hashed(prefix: str, text: str) -> str:
    text = " ".join(text.casefold().split())
    return f"{prefix}:{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else ""
