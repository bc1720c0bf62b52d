"""Images and sounds of the rows: found at the start, inside the data's folder only, and named to the page by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal.errors import AfzalError
from afzal.records import Item, Turns

# No SVG: it may hold scripts.
TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
}
KINDS = ("image", "audio")


class Library:
    """The media files that some rows name.

    Args:
        root: the folder that relative paths start from, and that no path leaves.

    Raises:
        AfzalError: a row names a file that is not there, lies outside the folder, or is of no known type.
    """

    def __init__(self, root: Path, items: Iterable[Item]) -> None:
        self._root = root.resolve()
        self._files: dict[str, str] = {}
        self._names: dict[str, str] = {}
        for item in items:
            for name in _named(item):
                if name not in self._names:
                    self._add(name, item.where or item.id)

    def key(self, part: Mapping[str, Any]) -> str:
        """What the page calls the file of a part."""
        return self._names[_path_of(part) or ""]

    def find(self, key: str) -> Path | None:
        """The file of a key; None for an unknown key, or when the file has left the folder since."""
        name = self._files.get(key)
        return None if name is None else self._inside(name)

    def _add(self, name: str, where: str) -> None:
        if (path := self._inside(name)) is None:
            what = f"{name!r} is no file in the folder of the data"
            remedy = "put images and sounds beside the data file, and name them by relative paths"
            raise AfzalError(what, where=where, remedy=remedy)
        if path.suffix.lower() not in TYPES:
            raise AfzalError(f"{name!r} is of no type that is shown", where=where, remedy=f"known: {', '.join(TYPES)}")
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._names[name], self._files[key] = key, name

    def _inside(self, name: str) -> Path | None:
        """The file that a name leads to, links followed, if it lies in the folder."""
        try:
            path = (self._root / name).resolve()
            return path if path.is_relative_to(self._root) and path.is_file() else None
        except (OSError, ValueError):
            return None


def media_type(path: Path) -> str:
    """As the Content-Type says it."""
    return TYPES[path.suffix.lower()]


def root_of(source: str) -> Path:
    """The folder of the data: itself, or that of the file."""
    path = Path(source)
    return path if path.is_dir() else path.parent


def is_media(part: Mapping[str, Any]) -> bool:
    """Whether a content part is an image or a sound of the data's folder."""
    return _path_of(part) is not None


def _named(item: Item) -> Iterable[str]:
    for turns in (item.prompt, *(r.turns for r in item.responses)):
        for part in _parts(turns):
            name = _path_of(part)
            if name is not None:
                yield name


def _parts(turns: Turns) -> Sequence[Mapping[str, Any]]:
    if isinstance(turns, str):
        return ()
    return [part for m in turns if not isinstance(m.content, str) for part in m.content]


def _path_of(part: Mapping[str, Any]) -> str | None:
    """The path of an image or a sound, under the names that files use; None for anything else, and for addresses."""
    kind = part.get("type")
    if kind not in KINDS:
        return None
    name = next((v for k in (kind, "path", "url") if isinstance(v := part.get(k), str) and v), None)
    return None if name is None or "://" in name or name.startswith("data:") else name
