"""Embed a run folder's small images and sounds in a page, up to a size limit."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FILE = re.compile(r"media/[0-9a-f]{64}\.(jpg|mp3)")
_TYPES = {"jpg": "image/jpeg", "mp3": "audio/mpeg"}
_MOST_BYTES = 4 << 20  # all images and sounds of a page together


def previews(entries: Sequence[Any], run: Path) -> list[list[dict[str, str]]]:
    """For each prompt, ``kind``, ``name`` and ``source`` (a data URI) of its media, as far as there is room.

    Args:
        entries: for each prompt, the ``media`` value of its line in ``samples.jsonl``. Entries that do not name a
            preview of the run are skipped, since the folder may come from anybody.

    Returns:
        One list per prompt; ``source`` is empty if the page would become too large.
    """
    bytes_left, media = _MOST_BYTES, []
    for entry in entries:
        media.append([])
        for medium in entry if isinstance(entry, list) else []:
            file = str(medium.get("file")) if isinstance(medium, dict) else ""
            path, match = run / file, _FILE.fullmatch(file)
            if match is None or path.is_symlink() or not path.is_file():
                continue
            kind = "image" if match[1] == "jpg" else "audio"
            size, source = path.stat().st_size, ""
            if size <= bytes_left:
                bytes_left -= size
                source = f"data:{_TYPES[match[1]]};base64,{base64.b64encode(path.read_bytes()).decode()}"
            media[-1].append({"kind": kind, "name": str(medium.get("name") or kind), "source": source})
    return media
