"""The small images and sounds of a run folder as a page holds them: inside it, and not too many of them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FILE = re.compile(r"media/[0-9a-f]{64}\.(jpg|mp3)")
_TYPES = {"jpg": "image/jpeg", "mp3": "audio/mpeg"}
_MOST_BYTES = 4 << 20  # of all images and sounds of a page


def previews(told: Sequence[Any], run: Path) -> list[list[dict[str, str]]]:
    """For each prompt ``kind``, ``name`` and ``source`` (a data address) of its media, as far as there is room.

    Args:
        told: for each prompt what its line of ``samples.jsonl`` has under ``media``. What does not name a preview of
            the run is left out, since the folder may be anybody's.

    Returns:
        as many lists as prompts; ``source`` is empty where the page would become too large.
    """
    room, found = _MOST_BYTES, []
    for each in told:
        found.append([])
        for one in each if isinstance(each, list) else []:
            file = str(one.get("file")) if isinstance(one, dict) else ""
            path, named = run / file, _FILE.fullmatch(file)
            if named is None or path.is_symlink() or not path.is_file():
                continue
            kind = "image" if named[1] == "jpg" else "audio"
            size, source = path.stat().st_size, ""
            if size <= room:
                room -= size
                source = f"data:{_TYPES[named[1]]};base64,{base64.b64encode(path.read_bytes()).decode()}"
            found[-1].append({"kind": kind, "name": str(one.get("name") or kind), "source": source})
    return found
