"""Detect the format of a source's rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from afzal.data.column_proposals import columns_hint
from afzal.data.fields import Row, RowError, UnusableError, has, name_of
from afzal.data.format import Format
from afzal.data.formats import FORMATS
from afzal.data.parse_tools import PROMPTS
from afzal.data.parse_votes import WINNER, competing_votes, unknown_winner
from afzal.data.unread_fields import UnreadFields
from afzal.errors import AfzalError

# A format that fits nearly as many rows as the best one remains a candidate: one damaged row must not decide.
NEARLY = 0.9

# Rows with these fields are never read as plain text: refusing them is better than ignoring the opinions.
_OPINION_FIELDS = frozenset(
    (
        "accepted",
        "bad",
        "best",
        "better",
        "chosen",
        "completions",
        "dispreferred",
        "good",
        "lose",
        "loser",
        "negative",
        "positive",
        "preferred",
        "rejected",
        "rejected_messages",
        "rejected_response",
        "responses",
        "win",
        "winner",
        "worse",
        "worst",
    )
)
_NO_COLUMNS: Mapping[str, str] = {}
_WINNERS = 8  # number of first rows whose votes must all be unknown before a message blames the votes
# Formats are tried in this order: those that read opinions on answers come before those that ignore them.
_TIERS = (("preference", "unpaired", "refused"), ("votes",), ("plain",))


def detect(
    sample: Sequence[Row], source: str, wheres: Sequence[str] = (), columns: Mapping[str, str] = _NO_COLUMNS
) -> Format:
    """The format of a sample of rows.

    Of the formats that fit, one whose requirements include another's is preferred. Formats for plain text count only if
    no format for opinions fits.

    Args:
        wheres: ``file:line`` of each row, for messages.
        columns: the source's names of renamed fields, for messages.

    Raises:
        AfzalError: none fits, several fit equally well, the rows are of several kinds, or the format is refused.
    """
    tiers = [_fitting([entry for entry in FORMATS if entry.family in families], sample) for families in _TIERS]
    most = max((hits for tier in tiers for hits in tier.values()), default=0)
    fitting = next((tier for tier in tiers if tier), {})
    if not fitting or (fitting is tiers[-1] and any(not _OPINION_FIELDS.isdisjoint(row) for row in sample)):
        raise no_format_error(sample, source, wheres, columns)
    if 2 * max(fitting.values()) < most:
        raise _several_kinds(fitting, tiers, sample, source, wheres)
    if all(entry.family == "refused" for entry in fitting):
        raise _refused_format_error(next(iter(fitting)), sample, source)
    entries = [entry for entry in fitting if entry.family != "refused"]
    row = next((row for row in sample if all(entry.applies(row) for entry in entries)), sample[0])
    best = [
        e for n, e in enumerate(entries) if not any(_beats(o, m, e, n, row, fitting) for m, o in enumerate(entries))
    ]
    if fitting is tiers[-1]:
        best = best[:1]
    if len(best) > 1:
        raise _ambiguous(best, row, source)
    _refuse_competing_votes(best[0], sample, source, columns)
    return best[0]


def _refuse_competing_votes(entry: Format, sample: Sequence[Row], source: str, columns: Mapping[str, str]) -> None:
    """Refuse one vote of a row next to the votes of several annotators, unless ``--columns`` names the one vote.

    Raises:
        AfzalError: the rows have both; proposes the format that reads each.
    """
    if entry.name not in ("votes", "votes_wide") or (entry.name == "votes" and WINNER in columns):
        return
    several, one = competing_votes(sample)
    if not several:
        return
    people, vote = (_listed([columns.get(name, name) for name in names]) for names in (several, one))
    fields = "field {} looks" if len(several) == 1 else "fields {} look"
    raise AfzalError(
        f"the {fields.format(people)} like votes of several annotators, next to another vote in {vote}",
        where=source,
        why=f"{vote} may be their majority, the known truth or one more opinion",
        remedy=f"--format votes_wide reads the votes in {people}; --format votes reads {vote} alone",
    )


def _listed(names: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _fitting(entries: Sequence[Format], sample: Sequence[Row]) -> dict[Format, int]:
    """The entries that fit the most rows, or nearly as many, each with the number of rows it fits.

    In a small sample, one row is more than a tenth. So an entry that fits one row fewer than the best also remains if
    it reads all that the best one reads, and more.
    """
    hits = {entry: sum(entry.applies(row) for row in sample) for entry in entries}
    most = max(hits.values(), default=0)
    fitting = {entry: n for entry, n in hits.items() if n and n >= NEARLY * most}
    for entry, n in hits.items():
        if entry not in fitting and n == most - 1 and 2 * n >= most:
            row = next(row for row in sample if entry.applies(row))
            if any(
                rival.applies(row) and set(_required_fields(entry, row)) > set(_required_fields(rival, row))
                for rival in list(fitting)
            ):
                fitting[entry] = n
    return {entry: fitting[entry] for entry in entries if entry in fitting}


def unknown_votes_error(sample: Sequence[Row], where: str, columns: Mapping[str, str]) -> AfzalError | None:
    """The error for votes with unknown values, if all first rows are two answers and such a vote; else None."""
    unknown = [unknown_winner(row) for row in sample[:_WINNERS]]
    if not unknown or None in unknown or unknown[0] is None:
        return None
    remedy = "write the side or the name of the better answer in every row"
    return AfzalError(
        unknown[0].under(columns), where=where, why="the rows are two answers and a vote on them", remedy=remedy
    )


def no_format_error(
    sample: Sequence[Row], source: str = "", wheres: Sequence[str] = (), columns: Mapping[str, str] = _NO_COLUMNS
) -> AfzalError:
    """The error for rows that no format fits: a row's fields, the nearest format and what is missing for it, and how to
    name the fields."""
    if votes_error := unknown_votes_error(sample, wheres[0] if wheres else source, columns):
        return votes_error
    plain_formats = [entry for entry in FORMATS if entry.family == "plain"]
    unmatched = next(
        (n for n, row in enumerate(sample) if not any(entry.applies(row) for entry in plain_formats)), None
    )
    with_opinions = [n for n, row in enumerate(sample) if not _OPINION_FIELDS.isdisjoint(row)]
    k = unmatched if unmatched is not None else with_opinions[0] if with_opinions else 0
    row = sample[k] if sample else {}
    fields = ", ".join(f"{name} ({columns[name]})" if name in columns else str(name) for name in row) or "none"
    candidates = [
        e for e in FORMATS if e.parse and e.family != "votes" and not (k in with_opinions and e.family == "plain")
    ]
    # a tool's records whose other columns have free names require only a prompt, which any row may have
    candidates = [e for e in candidates if e.family == "plain" or e.requires != (PROMPTS,)]
    nearest = max(candidates, key=lambda entry: (_share(entry, row), len(entry.requires)))
    missing = [field.replace("|", " or ") for field in nearest.requires if not has(row, field)]
    lack = f"also needs {', '.join(missing)}" if missing else f"but {_complaint(nearest, row)}"
    comparison = f"the nearest format, {nearest.name}, {lack}" if _share(nearest, row) else "no format has any of them"
    whose = "the first row's" if k == 0 else "the row's"
    why = f"{whose} fields: {fields}; {comparison}"
    where = wheres[k] if k and k < len(wheres) else source
    return AfzalError(
        "no known format fits the rows", where=where, why=why, remedy=columns_hint(sample, _format_of_all)
    )


def opinion_hint(sample: Sequence[Row], name: str) -> str:
    """A hint how to declare the field of this name with ``--columns``, tested on the rows if possible."""
    return columns_hint(sample, _format_of_all, name)


def _format_of_all(sample: Sequence[Row]) -> Format | None:
    """The format whose parser accepts all rows, or None; used to test hints before they are given."""
    fitting = next((tier for f in _TIERS if (tier := _fitting([e for e in FORMATS if e.family in f], sample))), {})
    for entry in fitting:
        try:
            if entry.parse is not None and all(_reads_row(entry, row, UnreadFields(entry)) for row in sample):
                return entry
        except (RowError, UnusableError):
            continue
    return None


def ignorable_columns(row: Row, further: Row) -> list[str]:
    """The names of further columns that can be added to a row without changing its format, and that the format does not
    read."""
    names, form = [], _format_of_all([row])
    for name, value in further.items():
        extended = {**row, name: value}
        if name not in row and form is not None and name not in form.used() and _format_of_all([extended]) is form:
            names.append(name)
    return names


def _reads_row(entry: Format, row: Row, unread: UnreadFields) -> bool:
    parsed = entry.parse(row) if entry.parse else None
    if parsed is None:
        return False
    items = list(parsed) if isinstance(parsed, Iterator) else [parsed]
    return bool(items) and not any(
        isinstance(item, UnusableError) or unread.first_suspicious(row, item) for item in items
    )


def _beats(a: Format, a_place: int, b: Format, b_place: int, row: Row, hits: dict[Format, int]) -> bool:
    """Whether ``a`` reads all that ``b`` reads and more; or the same, and fits more rows or is listed first."""
    fields_a, fields_b = set(_required_fields(a, row)), set(_required_fields(b, row))
    return fields_a > fields_b or (fields_a == fields_b and (hits[a], -a_place) > (hits[b], -b_place))


def _share(entry: Format, row: Row) -> float:
    return sum(has(row, field) for field in entry.requires) / len(entry.requires)


def _complaint(entry: Format, row: Row) -> str:
    """The nearest format's parse error for the row."""
    try:
        parsed = entry.parse(row) if entry.parse else None
        if isinstance(parsed, Iterator):
            deque(parsed, maxlen=0)
    except (RowError, UnusableError) as error:
        return error.detail or error.reason
    return "its values are of another kind"


def _several_kinds(
    few: dict[Format, int],
    tiers: Sequence[dict[Format, int]],
    sample: Sequence[Row],
    source: str,
    wheres: Sequence[str],
) -> AfzalError:
    """The error for sources in which a few rows hold opinions and most have a format that would ignore them."""
    rare = max(few, key=lambda entry: few[entry])
    common, n = max(((entry, n) for tier in tiers for entry, n in tier.items()), key=lambda pair: pair[1])
    k = next(n for n, row in enumerate(sample) if rare.applies(row))
    return AfzalError(
        "the rows are of several kinds",
        where=wheres[k] if k < len(wheres) else source,
        why=f"{few[rare]} of {len(sample)} rows are in the format {rare.name}, the first of them here; "
        f"{n} are in the format {common.name}",
        remedy=f"put each kind in its own file, or name the format: --format {rare.name} or --format {common.name}",
    )


def _ambiguous(best: list[Format], row: Row, source: str) -> AfzalError:
    described = "; ".join(f"{e.name} ({', '.join(_required_fields(e, row))})" for e in best)
    able = [entry for entry in best if _complaint(entry, row) == "its values are of another kind"] or best
    return AfzalError(
        f"several formats fit the rows: {', '.join(e.name for e in best)}",
        where=source,
        why=described,
        remedy=f"choose one: --format {able[0].name}",
    )


def _refused_format_error(entry: Format, sample: Sequence[Row], source: str) -> AfzalError:
    row = next(row for row in sample if entry.applies(row))
    fields = (name for names in entry.requires for name in names.split("|") if has(row, name))
    reason = entry.refusal.format(fields=", ".join(fields))
    return AfzalError(f"format '{entry.name}' cannot be read", where=source, why=reason)


def _required_fields(entry: Format, row: Row) -> list[str]:
    """The row's fields that meet the format's requirements."""
    return [name for field in entry.requires if (name := name_of(row, field))]
