"""From a source to a :class:`Dataset`: detect the format, parse every row, account for each one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from afzal.data.dataset import Dataset, Drop, fingerprint
from afzal.data.detect import detect, nothing_fits
from afzal.data.fields import Row, RowError, UnusableError
from afzal.data.files import rows
from afzal.data.format import Format
from afzal.data.formats import FORMATS, named
from afzal.data.jsontext import Fault, Raw
from afzal.data.remap import without
from afzal.data.turns import answer_text, content_text
from afzal.errors import AfzalError
from afzal.records import Item, Message

SAMPLE_ROWS = 64
SHOWN_FAULTS = 5
_MEDIA = ("image", "images", "video", "videos", "audio", "audios", "rejected_images", "audio_path")
_TEMPLATE = ("tools", "chat_template_kwargs")


def read(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_error: Literal["raise", "drop"] = "raise",
) -> Dataset:
    """Every row of a file, folder or hub data set as items with votes; the format is found out from the first rows.

    Args:
        source: a .jsonl, .json, .csv, .tsv (each also .gz), .parquet or .arrow file, a folder of one kind of them, a
            ``datasets.save_to_disk`` folder, or a hub id ``owner/name[:config][@split]``.
        columns: Afzal's field name to the source's, such as ``{"chosen": "good"}``; dots reach into objects.
        format: a format's name, to skip detection (see ``afzal.data.FORMATS``).
        on_error: what to do with damaged rows (not JSON, a field missing or of a wrong type): raise, or drop and count.

    Raises:
        AfzalError: nothing to read, no known format, damaged rows with ``on_error="raise"``, or no row left.
    """
    stream = _renamed(rows(source), dict(columns or {}))
    head = list(islice(stream, SAMPLE_ROWS))
    sample = [raw.value for raw in head if not isinstance(raw.value, Fault)]
    stream = chain(head, stream)
    entry = _chosen(format, sample) if format else detect(sample, str(source)) if sample else None
    if entry is None:
        _refuse_empty(stream, str(source))
        raise AfzalError("no row can be read", where=str(source))
    return _collect(stream, entry, str(source), sample[0] if sample else {}, on_error, dict(columns or {}))


def _collect(
    stream: Iterable[Raw], entry: Format, source: str, first: Row, on_error: str, columns: dict[str, str]
) -> Dataset:
    items: list[Item] = []
    drops: list[Drop] = []
    faults: list[Drop] = []
    count, used = 0, entry.used()
    for raw in stream:
        count += 1
        made, lost = _parse(raw, entry, used)
        items += made
        drops += lost
        if not made and lost[-1].reason in _FAULTS:
            faults.append(lost[-1])
    if faults and on_error == "raise":
        raise _faulty(faults, count)
    if not items:
        raise _nothing_left(source, entry, drops, count, first)
    return Dataset(items, entry.name, count, drops, _notes(entry, first, columns), fingerprint(items), source)


def _parse(raw: Raw, entry: Format, used: frozenset[str]) -> tuple[list[Item], list[Drop]]:
    """A row's items and drops; a row without items has exactly one drop of scope "row", the last.

    ``used`` names the fields that the format reads.
    """
    ident = _id(raw.where)
    if isinstance(raw.value, Fault):
        return [], [Drop(raw.where, ident, raw.value.reason, raw.value.detail)]
    ident = _row_id(raw.value) or ident
    items: list[Item] = []
    drops: list[Drop] = []
    try:
        _refuse_media(raw.value)
        assert entry.parse is not None
        parsed = entry.parse(raw.value)
        for n, made in enumerate([parsed] if isinstance(parsed, Item) else parsed):
            if isinstance(made, UnusableError):
                drops.append(Drop(raw.where, ident, made.reason, made.detail, "part"))
                continue
            item, lost = _finished(made, raw, entry, used, ident if isinstance(parsed, Item) else f"{ident}#{n}")
            items.append(item)
            drops += lost
    except RowError as bad:
        return [], [Drop(raw.where, ident, bad.reason, bad.detail)]
    except UnusableError as unusable:
        return [], [Drop(raw.where, ident, unusable.reason, unusable.detail)]
    except RecursionError:
        return [], [Drop(raw.where, ident, "bad_value", "is nested too deeply")]
    if not items:
        reason = drops[0].reason if drops else "no_items"
        return [], [Drop(raw.where, ident, reason, drops[0].detail if drops else "the row holds no item")]
    return items, drops


_FAULTS = frozenset(
    {"not_json", "not_utf8", "not_an_object", "duplicate_key", "line_too_long", "wrong_width"}
    | {"missing_field", "wrong_type", "bad_value"}
)


def _finished(item: Item, raw: Raw, entry: Format, used: frozenset[str], ident: str) -> tuple[Item, list[Drop]]:
    """The item with its place, id, group and spare fields, and without empty answers."""
    ident, where = item.id or ident, item.where or raw.where
    drops = []
    empty = {k for k, response in enumerate(item.responses) if not answer_text(response.turns).strip()}
    if empty:
        if len(item.responses) - len(empty) < 2:
            named_ = ", ".join(f"response {k}" for k in sorted(empty))
            raise UnusableError("empty_response", f"{named_} of {len(item.responses)} is empty")
        item = without(item, empty)
        drops = [Drop(where, ident, "empty_response", f"response {k}", "part") for k in sorted(empty)]
    if entry.name == "afzal":
        return item.placed(ident, where, item.group, item.extra), drops
    assert isinstance(raw.value, Mapping)
    spare = {k: v for k, v in raw.value.items() if v is not None and (k in _TEMPLATE or (k not in used and _small(v)))}
    return item.placed(ident, where, item.group or _group(item), {**item.extra, **spare}), drops


def _group(item: Item) -> str:
    """What must stay on one side of a split, when the prompt alone does not say it.

    Dialogues that begin alike stay together: a later turn of one quotes the answers of an earlier one. Plain texts have
    no prompt to share.
    """
    if not isinstance(item.prompt, str):
        opening = next((m for m in item.prompt if m.role == "user"), Message("user", ""))
        return _hashed("opening", content_text(opening.content))
    return "" if item.prompt.strip() or not item.responses else _hashed("text", answer_text(item.responses[0].turns))


def _hashed(what: str, text: str) -> str:
    text = " ".join(text.casefold().split())
    return f"{what}:{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else ""


def _small(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)


def _id(where: str) -> str:
    return where.replace("\\", "/").rsplit("/", 1)[-1]


def _row_id(row: Row) -> str:
    if row.keys().isdisjoint(_IDS):
        return ""
    for name in _IDS:
        got = row.get(name)
        if isinstance(got, str | int) and not isinstance(got, bool) and str(got).strip():
            return str(got)
    return ""


_IDS = ("id", "prompt_id", "uid", "question_id", "idx", "message_tree_id")


def _refuse_media(row: Row) -> None:
    for name in () if row.keys().isdisjoint(_MEDIA) else _MEDIA:
        if isinstance(row.get(name), list | tuple | Mapping | bytes) and row[name]:
            raise UnusableError("media", f"'{name}' holds images, sound or video, which are not read yet")


def _renamed(stream: Iterator[Raw], columns: dict[str, str]) -> Iterator[Raw]:
    """Rows with ``columns`` applied: the source's name becomes Afzal's, and is gone under its own."""
    if not columns:
        yield from stream
        return
    seen = False
    for raw in stream:
        if isinstance(raw.value, Fault):
            yield raw
            continue
        found = {name: _reach(raw.value, path) for name, path in columns.items()}
        if not seen and (missing := [name for name, got in found.items() if got is _ABSENT]):
            raise _unknown_column(raw, columns[missing[0]])
        seen = True
        taken = {path.split(".")[0] for path in columns.values() if "." not in path}
        row = {k: v for k, v in raw.value.items() if k not in taken}
        yield Raw(raw.where, row | {name: got for name, got in found.items() if got is not _ABSENT})


_ABSENT = object()


def _reach(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, dot, rest = path.partition(".")
    if not dot or not isinstance(row, Mapping) or head not in row:
        return _ABSENT
    return _reach(row[head], rest)


def _unknown_column(raw: Raw, name: str) -> AfzalError:
    assert isinstance(raw.value, Mapping)
    fields = [str(field) for field in raw.value]
    close = get_close_matches(name, fields, n=1)
    remedy = f"did you mean '{close[0]}'?" if close else "name the fields as the file does"
    return AfzalError(f"no field '{name}'", where=raw.where, why=f"the row has: {', '.join(fields)}", remedy=remedy)


def _chosen(name: str, sample: list[Row]) -> Format:
    entries = named(name)
    if not entries:
        names = list(dict.fromkeys(entry.name for entry in FORMATS))
        close = get_close_matches(name, names, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
        raise AfzalError(f"unknown format '{name}'", remedy=remedy)
    best = max(entries, key=lambda entry: sum(entry.applies(row) for row in sample))
    if best.parse is None:
        raise AfzalError(f"format '{name}' cannot be read", why=best.refusal.format(fields=", ".join(best.requires)))
    return best


def _refuse_empty(stream: Iterable[Raw], source: str) -> None:
    faults = [Drop(r.where, "", r.value.reason, r.value.detail) for r in stream if isinstance(r.value, Fault)]
    if faults:
        raise _faulty(faults, len(faults))
    raise AfzalError("holds no rows", where=source, remedy="give a source with one row at least")


def _faulty(faults: list[Drop], count: int) -> AfzalError:
    others = [f"{fault.where}: {fault.detail}" for fault in faults[1:SHOWN_FAULTS]]
    more = len(faults) - 1 - len(others)
    lines = [f"{len(faults)} of {count} rows cannot be read", *others, *([f"and {more} more"] if more > 0 else [])]
    return AfzalError(
        faults[0].detail,
        where=faults[0].where,
        why="\n       ".join(lines),
        remedy="mend the rows, or pass --skip-bad to drop and count them",
    )


def _nothing_left(source: str, entry: Format, drops: list[Drop], count: int, first: Row) -> AfzalError:
    counts = Counter(drop.reason for drop in drops if drop.scope == "row")
    reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common())
    why = f"read as {entry.name}; dropped: {reasons}. First: {drops[0].where}: {drops[0].detail}"
    remedy = "" if "media" in counts else nothing_fits([first]).remedy
    return AfzalError(f"none of {count} rows can be used", where=source, why=why, remedy=remedy)


def _notes(entry: Format, first: Row, columns: dict[str, str]) -> list[str]:
    notes = [f"{what}: {_source(field, columns)}" for what, field in entry.reads.items()]
    used = entry.used()
    facts = [name for name in first if name in used and name not in _mentioned(entry) and first[name] is not None]
    return notes + ([f"also read: {', '.join(facts)}"] if facts else [])


def _source(field: str, columns: dict[str, str]) -> str:
    return f"{columns[field]} (given for {field})" if field in columns else field


def _mentioned(entry: Format) -> set[str]:
    return {name for names in entry.requires for name in names.split("|")} | {"id"}
