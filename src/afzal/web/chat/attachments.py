"""Images and sounds that a person attaches to a message, checked before a model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from afzal.data.fields import RowError
from afzal.data.mediafiles import MIB, Facts, MediaRules, format_of, inspect
from afzal.errors import AfzalError
from afzal.media import Media, in_row
from afzal.text import number

LARGEST_FILE = int(MediaRules().max_mib * MIB)
"""Size of the largest file that can be attached, in bytes."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A readable image or sound, with its bytes in memory, so that its file may change or disappear."""

    media: Media
    facts: Facts

    @property
    def summary(self) -> str:
        """Name, format and size, such as ``cat.png (png, 640 x 480 pixels)``."""
        facts = [self.facts.format]
        if self.facts.width:
            facts.append(f"{self.facts.width} x {self.facts.height} pixels")
        if self.facts.seconds:
            facts.append(f"{number(self.facts.seconds, 3)} s")
        return f"{self.media.name} ({', '.join(facts)})"


def attachment(content: bytes, name: str) -> Attachment:
    """The attachment with these bytes.

    Args:
        name: name of the file, for people.

    Raises:
        AfzalError: the bytes are neither an image nor a sound, or they are too large, broken or cut off.
    """
    known = format_of(content)
    if known is None and content:
        raise AfzalError(
            f"{name} is neither an image nor a sound that can be read",
            remedy="png, jpeg, gif, webp, bmp; wav, flac, ogg, mp3",
        )
    kind = known[0] if known else "image"
    try:
        facts = inspect(kind, content, MediaRules())
    except RowError as error:
        raise AfzalError(f"{name} {error.detail}", remedy="attach another file") from None
    return Attachment(in_row(kind, content, name), facts)


def read_attachment(path: str) -> Attachment:
    """The attachment in a file; ``~`` is the home folder.

    Raises:
        AfzalError: the file cannot be read, or as for :func:`attachment`.
    """
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise AfzalError(f"cannot read {path}", why=error.strerror or str(error)) from None
    return attachment(content, file.name)
