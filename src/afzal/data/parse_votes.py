"""Parse tables of votes: one row per vote, or one row per pair with several annotators' votes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from afzal.data.fields import (
    Row,
    RowError,
    UnusableError,
    has,
    is_numeral,
    name_of,
    number,
    optional_number,
    text,
    value,
    weight,
)
from afzal.data.format import Format
from afzal.data.turns import answer_text, assistant_turn, chat_prompt, messages
from afzal.data.vote_values import Pair, pair_of, plain, read_vote
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Outcome, Rating, Response, Turns

PROMPTS = "prompt|instruction|question|query|context"
ANSWERS = "response|completion|answer|output"
SCORES = "score|rating"
WINNER = "winner"
WINNERS = (WINNER, "preference", "preferred", "choice", "vote", "verdict", "label", "better", "preferred_response")
_WHO = ("annotator", "worker", "rater", "user", "labeler", "evaluator", "expert", "judge")
ANNOTATORS = "|".join((*_WHO, *(f"{who}_id" for who in _WHO), *(f"{who}_name" for who in _WHO)))
SECONDS = "seconds|lead_time|time_spent|duration_seconds|time_per_example"
TIMES = "at|timestamp|created_at|submitted_at|tstamp"
_VOTE_FACTS = "|".join((ANNOTATORS, SECONDS, TIMES, "vote_id|annotation_id"))
_LISTS = ("votes", "annotations", "preferences", "winners", "labels", "judgments", "verdicts", "human_votes", "choices")
_OF_ONE = re.compile(rf"({'|'.join(_WHO)}|voter|person|vote|winner|preference|choice|label|verdict)_?(?=[^_].*)(.+)")
_ONES = re.compile(r"(.+)_(vote|winner|preference|choice|verdict)")
_NO_VOTE = re.compile(
    r"(?:.*_)?(?:id|ids|name|email|model|time|seconds|comment|comments|note|notes|reason|confidence|count)"
)


def fits(row: Row) -> bool:
    """Whether the row has a prompt, two answers whose names differ in the side, and one winner with a known value, but
    no columns of several annotators."""
    keys = tuple(row)
    pair = pair_of(keys)
    if pair is None or not _is_complete(row, pair):
        return False
    loose = replace(pair, counts=True)
    if True not in [_is_known_vote(row[name], name, loose, row) for name in _decisive(keys)]:
        return False
    return (
        sum(
            bool(_annotator_in(name)) and _is_known_vote(row[name], name, loose, row) is True
            for name in _other_fields(keys)
        )
        < 2
    )


def unknown_winner(row: Row) -> RowError | None:
    """The error of a vote whose value is unknown, if the row lacks nothing else; None for other rows."""
    pair, unknown = pair_of(tuple(row)), None
    if pair is None or not _is_complete(row, pair):
        return None
    for name in _decisive(tuple(row)):
        try:
            read_vote(row[name], replace(pair, counts=True), row, name)
        except RowError as error:
            unknown = unknown or error
        except UnusableError:
            continue
        else:
            return None
    return unknown


def fits_wide(row: Row) -> bool:
    """Whether the row holds a prompt, two answers, and votes of several annotators with known values."""
    pair, keys = pair_of(tuple(row)), tuple(row)
    if pair is None or not _is_complete(row, pair):
        return False
    loose = replace(pair, counts=True)
    if votes_field := _votes_field(keys):
        try:
            entries = (
                list(_entries(row[votes_field], votes_field))
                if isinstance(row[votes_field], list | tuple | Mapping)
                else []
            )
        except RowError:
            return False
        recognised = [
            _is_known_vote(cell, field, loose, row) for stated, _ in entries for field, cell in stated.items()
        ]
        return True in recognised and False not in recognised
    return sum(_is_known_vote(row[name], name, loose, row) is True for name in _other_fields(keys)) > 1


def competing_votes(sample: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(fields with the votes of several annotators, fields that state one vote of the row); empty unless rows have
    both."""
    pairs = [(row, replace(pair, counts=True)) for row in sample if (pair := pair_of(tuple(row)))]
    names = list(dict.fromkeys(name for row, _ in pairs for name in row))
    lists = {_votes_field(tuple(row)) for row, _ in pairs} - {""}
    of_all = sorted(lists) or [name for name in names if _is_column(name, pairs)]

    def states_votes(name: str) -> bool:
        known = [_is_known_vote(row[name], name, pair, row) for row, pair in pairs if name in row]
        return known.count(True) > 4 * known.count(False)

    of_row = [name for name in names if plain(name) in WINNERS and name not in lists and states_votes(name)]
    return (of_all, of_row) if of_row and (lists or len(of_all) > 1) else ([], [])


def fields_read(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these fields that every format of votes reads: two answers and their models, an annotator and facts
    about the vote."""
    return (*_answers(pair_of(keys)), *(name for name in _VOTE_FACTS.split("|") if name in keys))


def settled(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for rows of one vote each, adapted to these first rows: which fields state the vote, and whether 1, 2
    and 0 are counts or sides in each of them.

    Several fields that state the vote must agree in every row. Next to ``winner``, which ``--columns`` can set, another
    field states the vote only if it agrees with it in all first rows.
    """
    votes = _stating(sample)
    first = next((row for row in sample if fits(row)), next((row for row in sample if pair_of(tuple(row))), {}))
    pair = pair_of(tuple(first))

    def also(keys: tuple[str, ...]) -> Iterable[str]:
        return (*fields_read(keys), *votes)

    if pair is None or not votes:  # the format was given by name, and no row is a vote
        return replace(entry, parse=lambda row: vote(row, votes or None), also=also)
    vote_description = f"{' = '.join(votes)} {_vote_values(pair)}"
    reads = dict(zip(entry.reads, (name_of(first, PROMPTS), pair.a, pair.b, vote_description), strict=True))
    usual_names = (next(iter(votes)), pair.a, pair.b)
    return replace(entry, reads=reads, parse=lambda row: vote(row, votes, usual_names), also=also)


def _stating(sample: Sequence[Row]) -> dict[str, bool]:
    """The fields that state the vote of a row, and whether 1, 2 and 0 are counts in each."""
    names = list(dict.fromkeys(name for row in sample for name in _fields(tuple(row))))
    counts = {name: _are_counts(row.get(name) for row in sample) for name in names}
    if len(names) < 2:
        return counts
    pairs = [(row, pair) for row in sample if (pair := pair_of(tuple(row)))]

    def is_known(row: Row, pair: Pair, name: str) -> bool | None:
        return _is_known_vote(row.get(name), name, replace(pair, counts=counts[name]), row)

    if WINNER not in names:
        stated = {name: [is_known(row, pair, name) for row, pair in pairs] for name in names}
        consistent = [name for name in names if stated[name].count(True) > 4 * stated[name].count(False)]
        return {name: counts[name] for name in consistent or names}
    decided = [(row, pair) for row, pair in pairs if is_known(row, pair, WINNER)]
    agreeing_names = [
        name for name in names if name != WINNER and any(is_known(row, pair, name) for row, pair in decided)
    ]
    both = {name: {WINNER: counts[WINNER], name: counts[name]} for name in agreeing_names}
    agreeing = [name for name in agreeing_names if all(_agree(row, pair, both[name]) for row, pair in decided)]
    return {name: counts[name] for name in (WINNER, *agreeing)}


def _agree(row: Row, pair: Pair, fields: Mapping[str, bool]) -> bool:
    try:
        _agreed({name: row[name] for name in fields if name in row}, pair, row, fields)
    except RowError:
        return False
    except UnusableError:
        return True
    return True


def settled_wide(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for rows of several votes each: which columns are annotators, and whether 1, 2 and 0 are counts.

    A column whose name denotes an annotator needs known values in most of the first rows; one with any other name, such
    as ``ann``, needs words for the two sides in all of them.
    """
    pairs = [(row, replace(pair, counts=True)) for row in sample if (pair := pair_of(tuple(row)))]
    names = tuple(name for name in dict.fromkeys(n for row in sample for n in row) if _is_column(name, pairs))
    counts = _are_counts(cell for row in sample for stated, _ in _votes_in(row, names) for cell in stated.values())

    def also(keys: tuple[str, ...]) -> Iterable[str]:
        return (*fields_read(keys), *names, *filter(None, [_votes_field(keys)]))

    numbers = [
        name
        for row, pair in pairs
        for name in _other_fields(tuple(row))
        if _is_known_vote(row.get(name), name, pair, row)
    ]
    if numbers and not names and not any(_votes_field(tuple(row)) for row, _ in pairs):
        raise AfzalError(
            f"{' and '.join(dict.fromkeys(numbers))} hold numbers, which may be votes or scores",
            why="numbers are votes only in columns whose names say that they belong to an annotator",
            remedy=f"rename them (vote_{numbers[0]}, ...), or write the sides as words (A, B, tie)",
        )
    return replace(entry, parse=lambda row: wide_vote(row, names, counts), also=also)


def _vote_values(pair: Pair) -> str:
    return f"({pair.sides[0]}, {pair.sides[1]}, tie or both_bad); rows on the same answers are one item"


def _are_counts(values: Iterable[Any]) -> bool:
    """Whether both 1 and 2 are among the values, so that 0 is not one of the two sides."""
    return {"1", "2"} <= {str(cell).strip().removesuffix(".0") for cell in values}


def vote(
    row: Row,
    fields: Mapping[str, bool] | None = None,
    usual_names: tuple[str, ...] = (WINNER, "response_a", "response_b"),
) -> Item:
    """One vote on two answers; rows with the same prompt and the same two answers are joined later.

    Args:
        fields: the fields that state the vote, and whether 1, 2 and 0 are counts in each; None for the row's own.
        usual_names: the names that most rows of the source use for the vote and the two answers, for messages.
    """
    pair = pair_of(tuple(row))
    fields = dict.fromkeys(_fields(tuple(row)), False) if fields is None else fields
    stated = {name: row[name] for name in fields if name in row}
    if pair is None or not stated:
        missing = next((name for name in usual_names if name not in row), None)
        raise RowError(
            "missing_field", missing or usual_names[0], "is missing" if missing else "is not the only such field"
        )
    outcome, strength = _agreed(stated, pair, row, fields)
    return _item(row, pair, (Comparison(0, 1, outcome, strength, weight=weight(row), **recorded(row)),))


def _agreed(
    stated: Mapping[str, Any], pair: Pair, row: Row, counts: Mapping[str, bool]
) -> tuple[Outcome, float | None]:
    """The one vote that fields state, and its strength; an empty field states nothing.

    Raises:
        UnusableError: all are empty.
        RowError: two of them state different votes, or one is unknown.
    """
    votes: dict[str, tuple[Outcome, float | None]] = {}
    for name, cell in stated.items():
        if not _is_empty(cell):
            votes[name] = read_vote(cell, replace(pair, counts=counts.get(name, False)), row, name)
    if not votes:
        raise UnusableError("no_votes", f"'{next(iter(stated))}' is empty")
    (first, (outcome, _)), *further = votes.items()
    for name, (other_outcome, _) in further:
        if other_outcome != outcome:
            values = f"is {str(stated[name])[:40]!r}, but '{first}' is {str(stated[first])[:40]!r}"
            raise RowError("bad_value", name, f"{values}: one row states one vote")
    return outcome, next((strength for _, strength in votes.values() if strength is not None), None)


def wide_vote(row: Row, columns: tuple[str, ...] = (), counts: bool = False) -> Item:
    """The votes of several annotators on two answers; an empty cell is not a vote."""
    pair = pair_of(tuple(row))
    if pair is None:
        raise RowError("missing_field", "response_a", "is missing, or the other answer is")
    votes = []
    for stated, facts in _votes_in(row, columns):
        if not all(map(_is_empty, stated.values())):
            outcome, strength = _agreed(stated, pair, row, dict.fromkeys(stated, counts))
            votes.append(Comparison(0, 1, outcome, strength, weight=weight(row), **facts))
    if not votes:
        raise UnusableError("no_votes", "nobody voted")
    return _item(row, pair, tuple(votes))


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or cell != cell


def rated(row: Row) -> Item:
    """One annotator's score of one answer, larger is better; rows with the same prompt are joined later."""
    source = name_of(row, "model|source|generator|response_source")
    answer = Response(_reply(row, ANSWERS), str(row[source]) if source else None)
    rating = Rating(0, number(row, SCORES), "score", weight(row), **recorded(row))
    return Item("", _prompt(row), (answer,), (rating,))


def _item(row: Row, pair: Pair, votes: tuple[Comparison, ...]) -> Item:
    names = [tuple(row.get(field) for field in fields) for fields in pair.names]
    sources = next(((a, b) for a, b in names if isinstance(a, str) and isinstance(b, str)), (None, None))
    responses = (Response(_reply(row, name), source) for name, source in zip((pair.a, pair.b), sources, strict=True))
    return Item("", _prompt(row), tuple(responses), votes)


def _prompt(row: Row) -> Turns:
    prompt = value(row, PROMPTS)
    return chat_prompt(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")


def _reply(row: Row, names: str) -> Turns:
    raw, name = value(row, names), name_of(row, names)
    turns = messages(raw, name) if isinstance(raw, list | dict) else assistant_turn(text(row, name))
    if not any(m.role == "assistant" for m in turns) and answer_text(turns):
        raise RowError("bad_value", name, "holds no answer of the assistant")
    return turns


def recorded(row: Row) -> dict[str, Any]:
    """The annotator, duration, time and id of a vote."""
    annotator_field, time_field, name = (name_of(row, names) for names in (ANNOTATORS, TIMES, "vote_id|annotation_id"))
    return {
        "annotator": str(row[annotator_field]).strip() or None if annotator_field else None,
        "seconds": optional_number(row, SECONDS),
        "at": _time(row[time_field]) if time_field else None,
        "id": str(row[name]) if name else None,
    }


def _time(raw: Any) -> str:
    """A time as text; seconds since 1970 become ISO 8601."""
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 < raw < 1e11:
        return str(raw)
    return datetime.fromtimestamp(raw, UTC).isoformat()


@lru_cache(maxsize=256)
def _fields(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The fields whose names say that they hold the vote of a row."""
    return tuple(name for name in keys if plain(name) in WINNERS)


def _decisive(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of them by which rows of votes are recognised: ``winner`` alone, which ``--columns`` can set, or all."""
    return (WINNER,) if WINNER in keys else _fields(keys)


def _answers(pair: Pair | None) -> tuple[str, ...]:
    return () if pair is None else (pair.a, pair.b, *(field for fields in pair.names for field in fields))


def _is_complete(row: Row, pair: Pair) -> bool:
    return has(row, PROMPTS) and all(row[name] is not None for name in (pair.a, pair.b))


def _is_known_vote(cell: Any, field: str, pair: Pair, row: Row) -> bool | None:
    """Whether a value is a known vote on the pair; None if it is empty."""
    try:
        read_vote(cell, pair, row, field)
    except RowError:
        return False
    except UnusableError:
        return None
    return True


@lru_cache(maxsize=256)
def _votes_field(keys: tuple[str, ...]) -> str:
    """The field with the votes of all annotators, if there is exactly one."""
    fields = [name for name in keys if plain(name) in _LISTS]
    return fields[0] if len(fields) == 1 else ""


@lru_cache(maxsize=256)
def _other_fields(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that may hold one annotator's votes; one called ``label`` or ``winner`` holds nobody's own."""
    read_names = (*_answers(pair_of(keys)), *PROMPTS.split("|"), *_fields(keys))
    return tuple(name for name in keys if name not in read_names and not _NO_VOTE.fullmatch(plain(name)))


def _is_column(name: str, pairs: Sequence[tuple[Row, Pair]]) -> bool:
    present = [(row, pair) for row, pair in pairs if name in row and name in _other_fields(tuple(row))]
    recognised = [_is_known_vote(row[name], name, pair, row) for row, pair in present]
    if _annotator_in(name):
        return recognised.count(True) > 4 * recognised.count(False)
    return True in recognised and False not in recognised and not any(is_numeral(str(row[name])) for row, _ in present)


def _annotator_in(column: str) -> str:
    """The annotator in a column's name: ``winner_ann`` and ``ann_vote`` give ann, ``annotator1`` gives itself."""
    word = plain(column)
    if match := _OF_ONE.fullmatch(word):
        return column if match[1] in (*_WHO, "voter", "person") or match[2].isdigit() else match[2]
    match = _ONES.fullmatch(word)
    return match[1] if match else ""


def _votes_in(row: Row, columns: tuple[str, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(values by field, facts about the vote) for every annotator of a row."""
    votes_field = _votes_field(tuple(row))
    if votes_field:
        return list(_entries(row[votes_field], votes_field))
    return [({name: row[name]}, {"annotator": _annotator_in(name) or name}) for name in columns if name in row]


def _entries(raw: Any, field: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The votes in a field: by name, in order, or as objects."""
    if isinstance(raw, Mapping):
        for annotator, cell in raw.items():
            yield {field: cell}, {"annotator": str(annotator).strip()}
        return
    if not isinstance(raw, list | tuple):
        raise RowError("wrong_type", field, "is neither a list of votes nor an object of them")
    for k, entry in enumerate(raw, 1):
        if not isinstance(entry, Mapping):
            yield {field: entry}, {"annotator": f"{field} {k}"}
        elif fields := _fields(tuple(entry)):
            yield {name: entry[name] for name in fields}, recorded(entry)
        else:
            raise RowError("missing_field", f"{field}[].winner", "is missing")
