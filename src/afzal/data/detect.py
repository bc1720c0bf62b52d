"""Which format the rows of a source are in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from afzal.data.fields import Row, RowError, UnusableError, has, name_of
from afzal.data.format import Format
from afzal.data.formats import FORMATS
from afzal.errors import AfzalError

# A format that fits nearly as many rows as the best one stays in: one damaged row must not decide.
NEARLY = 0.9

_SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "problem", "context", "history", "text"),
    "chosen": ("chosen", "better", "good", "preferred", "accepted", "winner", "positive", "win", "best"),
    "rejected": ("rejected", "worse", "bad", "dispreferred", "loser", "negative", "lose", "worst"),
}


# Rows with these are never taken for plain text: rather refuse than train on half of what they say.
_OPINION_FIELDS = frozenset(
    {*_SYNONYMS["chosen"], *_SYNONYMS["rejected"], "rejected_response", "rejected_messages", "responses", "completions"}
)


def detect(sample: Sequence[Row], source: str) -> Format:
    """The format of a sample of rows.

    Of the formats that fit, one that needs all another needs, and more, is preferred; formats for plain text only count
    when no format for opinions fits.

    Raises:
        AfzalError: none fits, several fit equally well, or the format is one that is refused.
    """
    opinions = _fitting([entry for entry in FORMATS if entry.family != "plain"], sample)
    if not opinions:
        plain = _fitting([entry for entry in FORMATS if entry.family == "plain"], sample)
        if not plain or any(not _OPINION_FIELDS.isdisjoint(row) for row in sample):
            raise nothing_fits(sample, source)
        return plain[0]
    if all(entry.family == "refused" for entry in opinions):
        raise _refused(opinions[0], sample, source)
    opinions = [entry for entry in opinions if entry.family != "refused"]
    row = next((row for row in sample if all(entry.applies(row) for entry in opinions)), sample[0])
    best = [e for n, e in enumerate(opinions) if not any(_beats(o, m, e, n, row) for m, o in enumerate(opinions))]
    if len(best) > 1:
        raise _ambiguous(best, row, source)
    return best[0]


def _fitting(entries: Sequence[Format], sample: Sequence[Row]) -> list[Format]:
    """The entries that fit most rows, or nearly as many as the best of them."""
    hits = [sum(entry.applies(row) for row in sample) for entry in entries]
    most = max(hits)
    return [entry for n, entry in zip(hits, entries, strict=True) if n and n >= NEARLY * most]


def nothing_fits(sample: Sequence[Row], source: str = "") -> AfzalError:
    """What the first row holds, which format is nearest, what that one lacks, and how to name the fields."""
    row = sample[0] if sample else {}
    fields = ", ".join(map(str, row)) or "none"
    voiced = not _OPINION_FIELDS.isdisjoint(row)
    able = [entry for entry in FORMATS if entry.parse and not (voiced and entry.family == "plain")]
    nearest = max(able, key=lambda entry: (_share(entry, row), len(entry.requires)))
    missing = [field.replace("|", " or ") for field in nearest.requires if not has(row, field)]
    lack = f"also needs {', '.join(missing)}" if missing else f"but {_complaint(nearest, row)}"
    near = f"the nearest format, {nearest.name}, {lack}" if _share(nearest, row) else "no format has any of them"
    why = f"the first row's fields: {fields}; {near}"
    return AfzalError("no known format fits the rows", where=source, why=why, remedy=_columns_hint(row))


def _beats(a: Format, a_place: int, b: Format, b_place: int, row: Row) -> bool:
    """Whether ``a`` is the more specific: takes all that ``b`` takes and more, or the same and is listed first."""
    ours, theirs = set(_found(a, row)), set(_found(b, row))
    return ours > theirs or (ours == theirs and a_place < b_place)


def _share(entry: Format, row: Row) -> float:
    return sum(has(row, field) for field in entry.requires) / len(entry.requires)


def _complaint(entry: Format, row: Row) -> str:
    """What the nearest format's parser says about the row."""
    try:
        parsed = entry.parse(row) if entry.parse else None
        if isinstance(parsed, Iterator):
            deque(parsed, maxlen=0)
    except (RowError, UnusableError) as error:
        return error.detail or error.reason
    return "its values are of another kind"


def _columns_hint(row: Row) -> str:
    guesses = {want: _guess(row, names) or f"<{want} field>" for want, names in _SYNONYMS.items()}
    pairs = ",".join(f"{want}={field}" for want, field in guesses.items())
    return f"say which field is which: --columns {pairs}"


def _guess(row: Row, names: tuple[str, ...]) -> str:
    """The row's field that most resembles one of the names; ids do not count."""
    fields = [str(field) for field in row if not str(field).lower().endswith("id")]
    exact = [field for field in fields if field.lower() in names]
    return next(iter(exact + [field for field in fields if any(name in field.lower() for name in names)]), "")


def _ambiguous(best: list[Format], row: Row, source: str) -> AfzalError:
    described = "; ".join(f"{e.name} ({', '.join(_found(e, row))})" for e in best)
    return AfzalError(
        f"several formats fit the rows: {', '.join(e.name for e in best)}",
        where=source,
        why=described,
        remedy=f"choose one: --format {best[0].name}",
    )


def _refused(entry: Format, sample: Sequence[Row], source: str) -> AfzalError:
    row = next(row for row in sample if entry.applies(row))
    fields = (name for names in entry.requires for name in names.split("|") if has(row, name))
    what = entry.refusal.format(fields=", ".join(fields))
    return AfzalError(f"format '{entry.name}' cannot be read", where=source, why=what)


def _found(entry: Format, row: Row) -> list[str]:
    """The row's fields that the format's requirements come to."""
    return [name for field in entry.requires if (name := name_of(row, field))]
