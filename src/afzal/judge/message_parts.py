"""Images and sounds in the requests to a judge, each at its place in the text.

A template renders text only. So each medium is replaced by a mark that occurs nowhere in the request, and the rendered
text is split at the marks again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.media import media_part
from afzal.records import Message, Turns, media_of, turns_to_json
from afzal.servers.messages import Content


def content(render: Callable[..., str], values: Mapping[str, Turns]) -> Content:
    """The values rendered by ``render``, with every image and sound in its place.

    Raises:
        AfzalError: the rendered text lacks one of them.
    """
    if not any(media_of(turns) for turns in values.values()):
        return render(**{name: full_text(turns) for name, turns in values.items()})
    key = json.dumps([turns_to_json(turns) for turns in values.values()], ensure_ascii=False)
    token = int(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24], 16)
    numbers = count()
    media = [m for turns in values.values() for m in media_of(turns)]
    text = render(**{name: _with_marks(turns, token, numbers) for name, turns in values.items()})
    pieces = re.split(rf"\[media {token} (\d+)\]", text)
    missing = [m for n, m in enumerate(media) if str(n) not in pieces[1::2]]
    if missing:
        raise AfzalError(
            f"the judge's prompt leaves out an {missing[0].kind} of the row: "
            f"{missing[0].name or missing[0].sha256[:12]}",
            where="prompt",
            remedy="write {{ prompt }}, {{ first }} and {{ second }} (or {{ answer }}) without filters",
        )
    parts: list[Mapping[str, Any]] = []
    for words, number in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        parts += [{"type": "text", "text": words}] if words else []
        parts += [media_part(media[int(number)])] if number is not None else []
    return tuple(parts)


def _with_marks(turns: Turns, token: int, numbers: Iterator[int]) -> str:
    """The text of the turns with marks for media."""
    if isinstance(turns, str):
        return turns
    marked = []
    for message in turns:
        parts = message.content
        if not isinstance(parts, str):
            parts = tuple(
                {"type": "text", "text": f"[media {token} {next(numbers)}]"} if "media" in part else part
                for part in parts
            )
        marked.append(Message(message.role, parts))
    return full_text(tuple(marked))
