"""Read any source that a user names: a file, a folder, a hub id, or a mixture of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from afzal.data import reading
from afzal.data.column_requests import ColumnRequest
from afzal.data.dataset import Dataset, fingerprint
from afzal.data.files import MAX_UNPACKED
from afzal.data.mediafiles import MediaRules
from afzal.data.mixture import TASK, is_mixture, mixture_of, tagged
from afzal.errors import AfzalError
from afzal.records import Item


def read(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_error: Literal["raise", "drop"] = "raise",
    max_unpacked: int = MAX_UNPACKED,
    media: MediaRules = reading.MEDIA_RULES,
    request: ColumnRequest = reading.NO_REQUEST,
) -> Dataset:
    """Like :func:`afzal.data.reading.read`; for a mixture (:mod:`afzal.data.mixture`), the rows of all its sources.

    Every item of a mixture names its task in ``extra["task"]``.

    Raises:
        AfzalError: a source cannot be read; or ``columns`` or ``format`` is given for a mixture, whose sources state
            their own.
    """
    if not is_mixture(source):
        options: Any = {"columns": columns, "format": format, "on_error": on_error}
        return reading.read(source, **options, max_unpacked=max_unpacked, media=media, request=request)
    if columns or format:
        setting_name = "columns" if columns else "format"
        raise AfzalError(
            f"{setting_name} has no effect on a mixture",
            where=str(source),
            remedy=f"state {setting_name} in its sources",
        )
    mixture = mixture_of(source)
    options_each: Any = {"on_error": on_error, "max_unpacked": max_unpacked, "media": media, "request": request}
    parts = [reading.read(s.data, columns=s.columns or None, format=s.format, **options_each) for s in mixture.sources]
    tasked = [tagged(part.items, s, k) for k, (part, s) in enumerate(zip(parts, mixture.sources, strict=True))]
    items = [item for part_items in tasked for item in part_items]
    return Dataset(
        items,
        " + ".join(dict.fromkeys(part.format for part in parts)),
        sum(part.rows for part in parts),
        [drop for part in parts for drop in part.drops],
        [_note(s.data, part, part_items) for s, part, part_items in zip(mixture.sources, parts, tasked, strict=True)],
        fingerprint(items),
        str(source),
        list(dict.fromkeys(name for part in parts for name in part.unread)),
        mixture,
    )


def stream(source: str | Path) -> Iterator[Item]:
    """Stream the items of a source, in little memory except for a mixture."""
    yield from read(source).items if is_mixture(source) else reading.Reading(source).items()


def _note(source: str, part: Dataset, items: Sequence[Item]) -> str:
    tasks = ", ".join(sorted({str(item.extra[TASK]) for item in items}))
    return f"{source}: {part.rows} rows as {part.format}, {len(items)} items of {tasks}"
