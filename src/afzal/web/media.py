"""Images and sounds of the rows: copied into the page's folder; the page knows them by the hash of their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from afzal.data.media_copies import FOLDER, copy_medium
from afzal.data.remap import with_media
from afzal.media import Media
from afzal.records import Item, media_of

# No SVG: it can contain scripts.
TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}


class MediaLibrary:
    """The media of some rows, by the SHA-256 of their bytes. Empty until :meth:`copy_to` is called."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._media = {media.sha256: media for item in items for media in media_of(item)}
        self._files: dict[str, Path] = {}

    def copy_to(self, folder: Path) -> None:
        """Copy missing files into ``folder/media``, so that the page needs no other folder.

        Raises:
            AfzalError: a file has changed since it was read, or cannot be copied.
        """
        for key, media in self._media.items():
            self._files[key] = copy_medium(media, folder)

    def with_copies(self, item: Item) -> Item:
        """The item with its media renamed to the copies."""
        return with_media(item, self._copy) if media_of(item) else item

    def find(self, key: str) -> Path | None:
        """The file of a key; None for an unknown key, or if the file no longer exists."""
        path = self._files.get(key)
        return None if path is None or path.is_symlink() or not path.is_file() else path

    def _copy(self, media: Media) -> Media:
        path = self._files[media.sha256]
        return replace(media, name=f"{FOLDER}/{path.name}", path=str(path), data=None)


def media_type(path: Path) -> str:
    """The Content-Type of a file."""
    return TYPES.get(path.suffix.removeprefix("."), "application/octet-stream")
