"""Turn a source into items: detect the format, parse every row, and account for each one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from afzal.data import row_errors
from afzal.data.annotation_folder import PageVotes, annotation_rows, is_annotation_folder
from afzal.data.cells import unpacked
from afzal.data.column_requests import ColumnRequest
from afzal.data.columns import renamed_rows
from afzal.data.dataset import Dataset, Losses, fingerprint
from afzal.data.detect import detect
from afzal.data.fields import Row, RowError, ScaleError, UnusableError, alternatives
from afzal.data.files import MAX_UNPACKED, rows
from afzal.data.format import SYSTEM, Format
from afzal.data.formats import FORMATS, named
from afzal.data.grouping import group_by_content
from afzal.data.joining import joined
from afzal.data.json_reader import Fault, RawRow
from afzal.data.judged_by import JUDGED_BY
from afzal.data.mediafiles import MediaRules
from afzal.data.mediaparts import names_media
from afzal.data.mediarows import MediaReader
from afzal.data.postprocess import has_content, has_system, system_of, template_option, with_system, without_marks
from afzal.data.potato import is_potato_folder, potato_rows
from afzal.data.remap import without
from afzal.data.unread_fields import UnreadFields, may_be_prompt
from afzal.drops import Drop
from afzal.errors import AfzalError
from afzal.records import Item

SAMPLE_ROWS = 64
MEDIA_RULES = MediaRules()
NO_REQUEST = ColumnRequest()
_TEMPLATE = ("tools", "chat_template_kwargs")


def read(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_error: Literal["raise", "drop"] = "raise",
    max_unpacked: int = MAX_UNPACKED,
    media: MediaRules = MEDIA_RULES,
    request: ColumnRequest = NO_REQUEST,
) -> Dataset:
    """Every row of a file, folder or hub data set as items with votes; the format is detected from the first rows.

    Args:
        source: a .jsonl, .json, .csv, .tsv (each also .gz), .parquet or .arrow file, a folder of files of one kind, a
            ``datasets.save_to_disk`` folder, a folder of the annotation page, or a hub id
            ``owner/name[:config][@split]``.
        columns: maps Afzal's field names to the source's, such as ``{"chosen": "good"}``; dots access nested objects.
        format: a format's name, to skip detection (see ``afzal.data.FORMATS``). Fields that it does not read are then
            ignored, whatever their names.
        on_error: what to do with damaged rows (not JSON, a field missing or of a wrong type): raise, or drop and count.
        max_unpacked: bytes that a gzip file may unpack to; 0 for any number.
        media: where images and sounds may be, and how large.
        request: columns that a function asks for. They are put in the items' ``extra`` whatever their size, even if the
            format reads them, and those asked for by name are not refused as not understood.

    Raises:
        AfzalError: there is nothing to read, no known format, a damaged row with ``on_error="raise"``, an unread field
            that may change what the rows mean, or no row left.
    """
    options: Any = {"columns": columns, "format": format, "on_error": on_error, "media": media, "request": request}
    reading = Reading(source, max_unpacked=max_unpacked, **options)
    drops: list[Drop] = []
    items = list(reading.items(drops))
    notes, unread = reading.notes(), reading.unread()
    return Dataset(items, reading.format, reading.rows, drops, notes, fingerprint(items), reading.source, unread)


class Reading:
    """A source whose items are streamed, so that a file of any size can be read in little memory.

    Attributes:
        format: the name of the format.
        rows: rows read so far; ``rows == kept + dropped rows``.
        losses: the drops, counted.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        format: str | None = None,
        on_error: Literal["raise", "drop"] = "raise",
        max_unpacked: int = MAX_UNPACKED,
        media: MediaRules = MEDIA_RULES,
        request: ColumnRequest = NO_REQUEST,
    ) -> None:
        self.source, self.rows, self.losses = str(source), 0, Losses()
        self._columns, self._strict, self._lenient = dict(columns or {}), format is None, on_error == "drop"
        self._page = PageVotes()
        _refuse_misspelt_columns(self._columns.keys() - request.names)
        stream = _structured(renamed_rows(self._raws(source, max_unpacked), self._columns), self._columns)
        head = list(islice(stream, SAMPLE_ROWS))
        valid = [raw for raw in head if isinstance(raw.value, Mapping)]
        self._sample = [raw.value for raw in valid if isinstance(raw.value, Mapping)]
        self._stream = chain(head, stream)
        if format is None and not valid:
            _refuse_empty(self._stream, self.source)
            raise AfzalError("no row can be read", where=self.source)
        wheres = [raw.where for raw in valid]
        self._entry = (
            _named_format(format, self._sample) if format else detect(self._sample, self.source, wheres, self._columns)
        )
        if self._entry.settle is not None:
            self._entry = self._entry.settle(self._entry, self._sample)
        self.format = self._entry.name
        self._request = request
        self._unread = UnreadFields(self._entry, partial(_is_passed_on, request, self._entry))
        self._bare_names: dict[tuple[str, ...], bool] = {}
        self._media = MediaReader(media, self._sample)
        # One row with a system message makes all rows conversations: they are not mixed with plain texts.
        self._chat = self._entry.system and any(has_system(row) for row in self._sample)

    @property
    def kept(self) -> int:
        """Number of rows so far that gave at least one item."""
        return self.rows - self.losses.rows

    @property
    def drop_counts(self) -> dict[str, int]:
        """Drops so far by reason, the most frequent first."""
        return dict(self.losses.counts.most_common())

    def notes(self) -> list[str]:
        """Notes on how the rows were understood: the meaning of each field."""
        return (
            _notes(self._entry, self._sample[0] if self._sample else {}, self._columns)
            + self._media.notes()
            + self._page.notes()
        )

    def unread(self) -> list[str]:
        """The skipped fields of the rows so far; ids are kept and not included."""
        return [name for name in self._unread.names if name not in _IDS]

    def items(self, drops: list[Drop] | None = None) -> Iterator[Item]:
        """Every item, once; drops are counted and added to ``drops``."""
        items = self._items(drops if drops is not None else None)
        return iter(joined(items)) if self._entry.family == "votes" else items

    def _raws(self, source: str | Path, max_unpacked: int) -> Iterator[RawRow]:
        if is_annotation_folder(source):
            return annotation_rows(source, self._page)
        return potato_rows(source) if is_potato_folder(source) else rows(source, max_unpacked)

    def _items(self, drops: list[Drop] | None) -> Iterator[Item]:
        faults: list[Drop] = []
        faulty = count = 0
        for raw in self._stream:
            self.rows += 1
            items, lost = self._parsed(raw)
            for drop in lost:
                self.losses.add(drop)
            if drops is not None:
                drops += lost
            if not items and lost[-1].reason in row_errors.FAULTS:
                faulty += 1
                faults += lost[-1:] if len(faults) < row_errors.MAX_SHOWN else []
            count += len(items)
            yield from items
        if faulty and not self._lenient:
            raise row_errors.faulty_rows_error(faults, faulty, self.rows, count)
        if not count:
            raise row_errors.no_usable_rows_error(self.source, self._entry, self.losses, self.rows, self._sample)

    def _parsed(self, raw: RawRow) -> tuple[list[Item], list[Drop]]:
        """A row's items and drops; a row without items has exactly one drop of unit "row", the last."""
        ident = _id(raw.where)
        if isinstance(raw.value, Fault):
            return [], [Drop(raw.where, ident, raw.value.reason, raw.value.detail, "row")]
        ident = _row_id(raw.value) or ident
        items: list[Item] = []
        drops: list[Drop] = []
        try:
            assert self._entry.parse is not None
            parsed = self._entry.parse(raw.value)
            if type(parsed) is Item and (plain := self._placed(parsed, raw, ident)):
                return [plain], []
            for n, result in enumerate([parsed] if isinstance(parsed, Item) else parsed):
                if isinstance(result, UnusableError):
                    drops.append(Drop(raw.where, ident, result.reason, result.detail, "response"))
                    continue
                item, lost = self._finished(
                    result, raw.where, raw.value, ident if isinstance(parsed, Item) else f"{ident}#{n}"
                )
                items.append(item)
                drops += lost
        except ScaleError as bad:
            raise row_errors.scale_error(bad, raw.where, self._entry, self._columns) from None
        except RowError as bad:
            return [], [Drop(raw.where, ident, bad.reason, bad.under(self._columns), "row")]
        except UnusableError as unusable:
            return [], [Drop(raw.where, ident, unusable.reason, unusable.detail, "row")]
        except RecursionError:
            return [], [Drop(raw.where, ident, "bad_value", "is nested too deeply", "row")]
        if not items:
            reason = drops[0].reason if drops else "no_items"
            return [], [Drop(raw.where, ident, reason, drops[0].detail if drops else "the row holds no item", "row")]
        return items, drops

    def _placed(self, item: Item, raw: RawRow, ident: str) -> Item | None:
        """Finish an item of texts whose row holds nothing else: set its place, id and group. None sends any other item
        to :meth:`_finished`."""
        if not item.is_plain or not self._is_bare(raw.value):  # pyright: ignore[reportArgumentType]
            return None
        for response in item.responses:
            if not has_content(response.turns):
                return None
        return item.placed(item.id or ident, item.where or raw.where, item.group or group_by_content(item), item.extra)

    def _finished(self, item: Item, place: str, row: Row, ident: str) -> tuple[Item, list[Drop]]:
        """The item with its system message, place, id, group and unread fields, and without empty answers."""
        entry, item = self._entry, without_marks(item)
        if self._chat or (entry.system and system_of(row)):
            item = with_system(item, row)
        name = self._unread.first_suspicious(row, item) or self._unread.first_suspicious_key(row)
        if name and self._strict:
            raise row_errors.unknown_field_error(name, place, entry, [row, *self._sample], self._columns)
        item = self._media.resolved(item, row, place)
        ident, where = item.id or ident, item.where or place
        drops = []
        empty = [k for k, response in enumerate(item.responses) if not has_content(response.turns)]
        if empty and not (entry.keeps_empty and len(empty) < len(item.responses)):
            if len(item.responses) - len(empty) < 2:
                names = ", ".join(f"response {k}" for k in empty)
                raise UnusableError("empty_response", f"{names} of {len(item.responses)} is empty")
            item = without(item, set(empty))
            drops = [Drop(where, ident, "empty_response", f"response {k}", "response") for k in empty]
        if entry.name == "afzal":
            return item.placed(ident, where, item.group, item.extra), drops
        keep_all = self._request.takes_all
        spare = {k: v for k in self._unread.others(row) if (v := row[k]) is not None and (keep_all or _small(v))}
        spare |= {k: row[k] for k in (*self._request.names, JUDGED_BY) if row.get(k) is not None}
        if not row.keys().isdisjoint(_TEMPLATE):
            spare |= {k: template_option(row, k) for k in _TEMPLATE if row.get(k)}
        return item.placed(ident, where, item.group or group_by_content(item), {**item.extra, **spare}), drops

    def _is_bare(self, row: Row) -> bool:
        """Whether a row's field names show that it holds only what its format reads.

        The answer is cached for rows with the same names, which saves a dozen look-ups per row.
        """
        names = tuple(row)
        bare = self._bare_names.get(names)
        if bare is None:
            has_special = names_media(row) or not row.keys().isdisjoint(
                (*_TEMPLATE, *alternatives(SYSTEM), *self._request.names, JUDGED_BY)
            )
            bare = not (
                has_special
                or self._chat
                or self._media.columns
                or self._entry.name == "afzal"
                or self._unread.others(row)
            )
            self._bare_names[names] = bare
        return bare


def _is_passed_on(request: ColumnRequest, entry: Format, name: str) -> bool:
    """Whether a field that the format does not read is passed to functions that ask for columns. For prompts without
    answers, functions that ask for every column also get fields about answers."""
    return (
        name == JUDGED_BY
        or name in request.names
        or (request.takes_all and entry.name == "prompts" and not may_be_prompt(name))
    )


def _structured(stream: Iterator[RawRow], columns: Mapping[str, str]) -> Iterator[RawRow]:
    """Rows with lists and messages parsed from the texts that spell them; ``columns`` is for error messages."""
    for raw in stream:
        if isinstance(raw.value, Fault):
            yield raw
            continue
        try:
            row = unpacked(raw.value)
        except RowError as bad:
            yield RawRow(raw.where, Fault(bad.reason, bad.under(columns)))
            continue
        yield raw if row is raw.value else RawRow(raw.where, row)


def _small(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)


def _id(where: str) -> str:
    return where.replace("\\", "/").rsplit("/", 1)[-1]


def _row_id(row: Row) -> str:
    if row.keys().isdisjoint(_ANY_ID):
        return ""
    for name in _IDS:
        raw = row.get(name)
        if isinstance(raw, str | int) and not isinstance(raw, bool) and str(raw).strip():
            return str(raw)
    return ""


_IDS = ("id", "prompt_id", "uid", "question_id", "idx", "message_tree_id")
_ANY_ID = frozenset(_IDS)


def _refuse_misspelt_columns(names: Iterable[str]) -> None:
    """Refuse a name that no format reads if it resembles one that a format does."""
    read_names = frozenset().union(*(entry.used() for entry in FORMATS))
    for name in sorted(set(names) - read_names):
        if close := get_close_matches(name.lower(), read_names, n=1, cutoff=0.85):
            raise AfzalError(f"columns: no format reads a field {name!r}", remedy=f"did you mean {close[0]}?")


def _named_format(name: str, sample: list[Row]) -> Format:
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


def _refuse_empty(stream: Iterable[RawRow], source: str) -> None:
    faults = [Drop(r.where, "", r.value.reason, r.value.detail, "row") for r in stream if isinstance(r.value, Fault)]
    if faults:
        raise row_errors.faulty_rows_error(faults, len(faults), len(faults), 0)
    raise AfzalError("holds no rows", where=source, remedy="give a source with at least one row")


def _notes(entry: Format, first: Row, columns: dict[str, str]) -> list[str]:
    notes = [f"{label}: {_source(field, columns)}" for label, field in entry.reads.items()]
    used = entry.used()
    facts = [name for name in first if name in used and name not in _mentioned(entry) and first[name] is not None]
    return notes + ([f"also read: {', '.join(facts)}"] if facts else [])


def _source(field: str, columns: dict[str, str]) -> str:
    name, blank, rest = field.partition(" ")
    return f"{columns[name]} (given for {name}){blank}{rest}" if name in columns else field


def _mentioned(entry: Format) -> set[str]:
    return {name for names in entry.requires for name in names.split("|")} | {"id"}
