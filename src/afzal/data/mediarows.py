"""Find the images and sounds of rows, check them, and put them in their places in the items.

Parsers leave media as the row writes them. Here every medium is read once, only from inside the data's folder, and
becomes a part ``{"type", "media"}``. A medium from a column takes the place of the next mark in reading order: prompt
first, then the responses. Texts are searched for marks only if the source has media columns; typed text parts never
are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal.data.fields import Row, RowError, UnusableError
from afzal.data.mediafiles import Facts, MediaRules, inspect, missing_extra, too_large
from afzal.data.mediaparts import column_values, has_columns, kind_of, marked, path_or_bytes, payload
from afzal.data.postprocess import as_conversation
from afzal.data.turns import joined_texts
from afzal.media import KINDS, Media, MediaKind, media_part
from afzal.records import Item, Message, Response, Turns, media_of

_Parts = tuple[Mapping[str, Any], ...]
_Feeds = Mapping[MediaKind, Iterator[tuple[int, Any]]]


class MediaReader:
    """Puts the media of one source into its items.

    Args:
        rules: where files may be, and how large.
        sample: the first rows; if any has a media column, all rows are conversations with marks.

    Attributes:
        columns: whether the source has media columns.
        counts: media by kind, counting every occurrence in items.
        placed_first: number of items whose media were put before the first user turn's text, since there were no marks.
    """

    def __init__(self, rules: MediaRules, sample: Sequence[Row]) -> None:
        self.columns = any(has_columns(row) for row in sample)
        self.counts: Counter[MediaKind] = Counter()
        self.placed_first = 0
        self._rules = rules
        self._files: dict[str, Media | RowError] = {}
        self._inspected: dict[tuple[MediaKind, str], Facts] = {}
        self._distinct: dict[MediaKind, set[str]] = {kind: set() for kind in KINDS}

    def notes(self) -> list[str]:
        """Notes on the media read so far."""
        notes = []
        for kind in KINDS:
            if n := self.counts[kind]:
                noun = {"image": "images", "audio": "sounds"}[kind]
                notes.append(f"{noun}: {n} ({len(self._distinct[kind])} different)")
                if remedy := missing_extra(kind):
                    notes.append(f"{noun} were not fully checked, only their first bytes; {remedy}")
        if self.placed_first:
            notes.append(f"no marks: the media of {self.placed_first} items come before the first user turn's text")
        return notes

    def resolved(self, item: Item, row: Row, where: str) -> Item:
        """The item with its media in place; unchanged if the row has none.

        Raises:
            RowError: a file is missing, outside the folder, broken, too large or of another type, or the number of
                marks differs from the number of media.
            UnusableError: the row holds video.
        """
        values = column_values(row)
        with_marks = self.columns or bool(values)
        if not with_marks and not _has_parts(item):
            return item
        if with_marks:
            item = _as_conversation(item, bool(values))
        prompt, *answers = [_parted(turns, with_marks) for turns in (item.prompt, *(r.turns for r in item.responses))]
        prompt = self._with_first(prompt, answers, values)
        _compare_counts((prompt, *answers), values)
        root = self._root(where)
        feeds: _Feeds = {kind: enumerate(values.get(kind, ())) for kind in KINDS}
        filled = [self._filled(turns, feeds, root) for turns in (prompt, *answers)]
        pairs = zip(filled[1:], item.responses, strict=True)
        item = replace(item, prompt=filled[0], responses=tuple(Response(turns, r.source) for turns, r in pairs))
        for media in media_of(item):
            self.counts[media.kind] += 1
            self._distinct[media.kind].add(media.sha256)
        return item

    def _root(self, where: str) -> Path:
        if self._rules.folder:
            return Path(self._rules.folder).expanduser().resolve()
        source = Path(where.rpartition(":")[0] or where)
        return (source if source.is_dir() else source.parent).resolve()

    def _with_first(self, prompt: Turns, answers: Sequence[Turns], values: Mapping[MediaKind, Sequence[Any]]) -> Turns:
        """The prompt with places before its first user turn's text for media of kinds that have no place at all."""
        places = Counter(_places((prompt, *answers)))
        unplaced = [{"type": kind} for kind in KINDS for _ in values.get(kind, ()) if not places[kind]]
        if not unplaced or isinstance(prompt, str):
            return prompt
        first = next((n for n, m in enumerate(prompt) if m.role == "user"), None)
        if first is None:
            raise RowError("media_count", "", f"{len(unplaced)} media, and no user turn to put them in")
        self.placed_first += 1
        turn = prompt[first]
        content = ({"type": "text", "text": turn.content},) if isinstance(turn.content, str) else turn.content
        return (*prompt[:first], Message(turn.role, (*unplaced, *content), turn.reasoning), *prompt[first + 1 :])

    def _filled(self, turns: Turns, feeds: _Feeds, root: Path) -> Turns:
        if isinstance(turns, str):
            return turns
        return tuple(Message(m.role, joined_texts(self._content(m, feeds, root)), m.reasoning) for m in turns)

    def _content(self, message: Message, feeds: _Feeds, root: Path) -> str | _Parts:
        if isinstance(message.content, str):
            return message.content
        parts: list[Mapping[str, Any]] = []
        for part in message.content:
            if (kind := kind_of(part)) is None:
                if part.get("type") in ("video", "video_url", "input_video"):
                    raise UnusableError("media", "video is not read")
                parts.append(part)
                continue
            if (value := payload(part)) is None:
                position, value = next(feeds[kind])
                if part.get("index") not in (None, position):
                    problem = (
                        f"place {position} of the kind {kind} has the index {part['index']!r}: media are taken in order"
                    )
                    raise RowError("media_count", "", problem)
            media = self._medium(kind, path_or_bytes(value), root)
            if (stated := part.get("sha256")) and stated != media.sha256:
                problem = f"{media.name or kind!r} is not the file that the row was written with: its SHA-256 differs"
                raise RowError("media_changed", "", problem)
            parts.append(media_part(media))
        return tuple(parts)

    def _medium(self, kind: MediaKind, value: str | bytes | Media, root: Path) -> Media:
        if isinstance(value, Media):
            return value
        if isinstance(value, bytes):
            return self._known(kind, value, "", "")
        path = _inside(root, value)
        key = f"{kind}:{path}"
        if key not in self._files:
            try:
                self._files[key] = self._known(kind, self._bytes(path, value), value, str(path))
            except RowError as bad:
                self._files[key] = RowError(bad.reason, "", f"{value!r} {bad.detail}")
        cached = self._files[key]
        if isinstance(cached, RowError):
            raise RowError(cached.reason, "", cached.detail)
        return cached if cached.name == value else replace(cached, name=value)

    def _known(self, kind: MediaKind, content: bytes, name: str, path: str) -> Media:
        key = kind, hashlib.sha256(content).hexdigest()
        if key not in self._inspected:
            self._inspected[key] = inspect(kind, content, self._rules)
        return Media(*key, name, path, None if path else content)

    def _bytes(self, path: Path, name: str) -> bytes:
        try:
            size = path.stat().st_size
            if size > self._rules.max_mib * 2**20:
                raise too_large(size, self._rules)
            return path.read_bytes()
        except OSError as error:
            raise RowError("media_missing", "", f"cannot be read: {error.strerror or error}") from None


def _inside(root: Path, name: str) -> Path:
    """The file that a name refers to, links resolved.

    Raises:
        RowError: it is a URL, leads out of the folder, or there is no such file.
    """
    shown = repr(name if len(name) <= 200 else f"{name[:200]}...")
    if "://" in name[:40]:
        raise RowError("media_address", "", f"{shown} is a URL: nothing is downloaded; use a file in the data's folder")
    try:
        path = (root / name).resolve()
        if ".." in Path(name).parts or not path.is_relative_to(root):
            raise RowError("media_outside", "", f"{shown} leads out of the data's folder")
        if not path.is_file():
            raise RowError("media_missing", "", f"{shown} is not a file in {root.name or root}/, the data's folder")
    except (OSError, ValueError, RuntimeError):
        raise RowError("media_missing", "", f"{shown} is not the name of a file") from None
    return path


def _parted(turns: Turns, with_marks: bool) -> Turns:
    """Messages whose texts are split into parts, with a place at each mark."""
    if isinstance(turns, str) or not with_marks:
        return turns
    return tuple(
        Message(m.role, marked(m.content), m.reasoning)
        if isinstance(m.content, str) and ("<image>" in m.content or "<audio>" in m.content)
        else m
        for m in turns
    )


def _places(all_turns: Sequence[Turns]) -> Iterator[MediaKind]:
    """The kind of every place without a payload, in reading order."""
    for part in _parts(all_turns):
        if (kind := kind_of(part)) is not None and payload(part) is None:
            yield kind


def _compare_counts(all_turns: Sequence[Turns], values: Mapping[MediaKind, Sequence[Any]]) -> None:
    places = Counter(_places(all_turns))
    for kind in KINDS:
        if places[kind] != len(values.get(kind, ())):
            n_media, noun = len(values.get(kind, ())), {"image": "image", "audio": "sound"}[kind]
            marks = f"{places[kind] or 'no'} mark{'s' * (places[kind] != 1)} <{kind}>"
            raise RowError(
                "media_count", "", f"{marks} and {n_media or 'no'} {noun}{'s' * (n_media != 1)} in the columns"
            )


def _parts(all_turns: Sequence[Turns]) -> Iterator[Mapping[str, Any]]:
    for turns in all_turns:
        if not isinstance(turns, str):
            yield from (part for m in turns if not isinstance(m.content, str) for part in m.content)


def _has_parts(item: Item) -> bool:
    for turns in (item.prompt, *[response.turns for response in item.responses]):
        if not isinstance(turns, str):
            for message in turns:
                if not isinstance(message.content, str):
                    return True
    return False


def _as_conversation(item: Item, has_media: bool) -> Item:
    if has_media and item.prompt == "":
        raise UnusableError("media", "a text without a prompt has no user turn for images and sounds")
    return as_conversation(item)
