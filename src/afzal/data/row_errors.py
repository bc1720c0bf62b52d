"""Errors for rows that cannot be read, or of which none can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from afzal.data.column_proposals import GENERAL_HINT
from afzal.data.dataset import Losses
from afzal.data.detect import no_format_error, opinion_hint, unknown_votes_error
from afzal.data.fields import Row, ScaleError
from afzal.data.format import Format
from afzal.drops import Drop
from afzal.errors import AfzalError

MAX_SHOWN = 5
FAULTS = frozenset(
    {"not_json", "not_utf8", "not_an_object", "duplicate_key", "line_too_long", "wrong_width"}
    | {"missing_field", "wrong_type", "bad_value"}
    | {"media_count", "media_missing", "media_outside", "media_address"}
    | {"media_broken", "media_wrong_type", "media_too_large", "media_changed"}
)


def unknown_field_error(
    name: str, where: str, entry: Format, sample: list[Row], columns: Mapping[str, str]
) -> AfzalError:
    """The error for an unread field that may say something about the answers."""
    if (votes := unknown_votes_error(sample, where, columns)) is not None:
        return AfzalError(
            votes.what,
            where=where,
            why=votes.why,
            remedy=f"{votes.remedy}; or, if the votes do not matter, --format {entry.name}",
        )
    field = columns.get(name, name)
    hint, ignore = opinion_hint(sample, name), f"ignore it, if it means nothing, with --format {entry.name}"
    return AfzalError(
        f"field '{field}' may change what the rows mean, and the format {entry.name} does not read it",
        where=where,
        remedy=f"{ignore}; or {hint}" if hint == GENERAL_HINT else f"{hint}; or {ignore}",
    )


def scale_error(bad: ScaleError, where: str, entry: Format, columns: Mapping[str, str]) -> AfzalError:
    """The error for a number that is not on the format's scale."""
    return AfzalError(
        bad.under(columns),
        where=where,
        why=f"read as {entry.name}; any other number means that the whole column uses another scale",
        remedy="write the column in the values of docs/formats.md",
    )


def faulty_rows_error(faults: list[Drop], n_faulty: int, count: int, sound: int) -> AfzalError:
    """The error for rows that cannot be read: the first ``faults`` of ``n_faulty`` ones among ``count`` rows, of which
    ``sound`` are valid."""
    further = [f"{fault.where}: {fault.detail}" for fault in faults[1:MAX_SHOWN]]
    n_more = n_faulty - 1 - len(further)
    lines = [
        f"{n_faulty} of {count} rows cannot be read",
        *further,
        *([f"and {n_more} more"] if n_more > 0 else []),
    ]
    return AfzalError(
        faults[0].detail,
        where=faults[0].where,
        why="\n       ".join(lines),
        remedy=_remedy(faults[0].reason, sound),
    )


def no_usable_rows_error(source: str, entry: Format, losses: Losses, count: int, sample: list[Row]) -> AfzalError:
    """The error for rows that can be read but of which none can be used."""
    dropped_rows = Counter({reason: n for reason, n in losses.counts.items() if not reason.endswith(" (part)")})
    reasons = ", ".join(f"{reason} {n}" for reason, n in dropped_rows.most_common())
    first = losses.first[0]
    why = f"read as {entry.name}; dropped: {reasons}. First: {first.where}: {first.detail}"
    remedy = "" if "media" in dropped_rows else no_format_error(sample).remedy
    return AfzalError(f"none of {count} rows can be used", where=source, why=why, remedy=remedy)


def _remedy(reason: str, sound: int) -> str:
    if reason in ("media_missing", "media_outside"):
        copied = "afzal convert FILE OUT --to afzal --media-folder FOLDER"
        fix = f"put the files into the data's folder; to copy them next to a new data file: {copied}"
    elif reason == "media_count":
        fix = 'use as many marks as media; a text in a typed part ({"type": "text"}) has no marks'
    elif reason == "not_utf8":
        fix = "save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8"
    else:
        fix = "fix the rows"
    dropped = "or drop and count them with --skip-bad"
    return f"{fix}, {dropped}" if sound else fix
