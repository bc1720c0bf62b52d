"""Copy images and sounds next to a data file that names them, so that it can be read without their original folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import get_ident

from afzal.data.mediafiles import format_of
from afzal.data.remap import with_media
from afzal.errors import AfzalError
from afzal.media import Media
from afzal.records import Item, media_of

FOLDER = "media"


def with_copied_media(items: Sequence[Item], folder: Path) -> list[Item]:
    """The items with media that a data file in ``folder`` can name. Media from other folders are copied to
    ``folder/media`` under the SHA-256 of their bytes; media inside ``folder`` or in rows stay where they are.

    Raises:
        AfzalError: a file has changed since it was read, or cannot be written.
    """
    root = folder.expanduser().resolve()
    return [with_media(item, lambda media: _with_copy(media, root)) if media_of(item) else item for item in items]


def share_media(source: Path, folder: Path) -> None:
    """Give rows that :func:`with_copied_media` placed in ``source`` their media in ``folder`` too; their names stay.

    Raises:
        AfzalError: a file cannot be linked or copied.
    """
    for file in sorted((source / FOLDER).glob("[!.]*")):
        target = folder / FOLDER / file.name
        if target.exists():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:  # another device, or a file system without links
                _write(target, file.read_bytes())
        except OSError as error:
            raise AfzalError(f"cannot copy {file}", why=str(error)) from None


def _with_copy(media: Media, folder: Path) -> Media:
    if not media.path:
        return media
    if Path(media.path).is_relative_to(folder):
        return replace(media, name=Path(media.path).relative_to(folder).as_posix())
    path = copy_medium(media, folder)
    return replace(media, name=f"{FOLDER}/{path.name}", path=str(path))


def copy_medium(media: Media, folder: Path) -> Path:
    """The file of a medium in ``folder/media``, written if it does not exist yet.

    Raises:
        AfzalError: the medium has changed since it was read, or cannot be written.
    """
    try:
        content = media.read()
        media_format = format_of(content)
        path = folder / FOLDER / f"{media.sha256}.{media_format[1] if media_format else media.kind}"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
    except (OSError, ValueError) as error:
        raise AfzalError(f"cannot copy {media.name or media.kind}", why=str(error)) from None
    return path


def _write(path: Path, content: bytes) -> None:
    """Write a file that is either complete or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")  # threads may copy the same file
    temporary.write_bytes(content)
    os.replace(temporary, path)
