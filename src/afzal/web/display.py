"""Prompts and responses as people see them, as plain values without sources and file names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afzal.media import Media
from afzal.records import Turns
from afzal.web.markdown import tree

TextKind = Literal["plain", "markdown"]


@dataclass(frozen=True, slots=True)
class Display:
    """How texts are shown."""

    text: TextKind = "plain"

    def turns(self, turns: Turns) -> list[dict[str, Any]]:
        """A text or a conversation as blocks ``{"role", "parts"}``; the role of a plain text is None.

        Text is ``{"type": "text", "text"}``, with a ``tree`` if it is shown as Markdown; an image or a sound is
        ``{"type", "media"}`` with its SHA-256; anything else is its JSON.
        """
        if isinstance(turns, str):
            return [{"role": None, "parts": [self._text(turns)]}]
        blocks = []
        for message in turns:
            content = message.content
            parts = [self._text(content)] if isinstance(content, str) else [self._part(part) for part in content]
            thoughts = [{"type": "reasoning", "text": message.reasoning}] if message.reasoning else []
            blocks.append({"role": message.role, "parts": thoughts + parts})
        return blocks

    def _text(self, text: str) -> dict[str, Any]:
        nodes = tree(text) if self.text == "markdown" else None
        return {"type": "text", "text": text} | ({} if nodes is None else {"tree": nodes})

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(media := part.get("media"), Media):
            return {"type": media.kind, "media": media.sha256}
        if part.get("type") == "text":
            return self._text(str(part.get("text", "")))
        return {"type": "foreign", "text": json.dumps(dict(part), ensure_ascii=False, default=str)}
