"""Parse flat exports of annotation tools: Label Studio's CSV and JSON-MIN, and Argilla's records with a column per
question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from afzal.data.cells import structure
from afzal.data.fields import Row, RowError, UnusableError, array, has, name_of, text, value
from afzal.data.format import Format
from afzal.data.parse_label_studio import SIDES, list_items, ranked
from afzal.data.parse_tools import (
    PROMPTS,
    SUBMITTED,
    UserResponse,
    answer_fields,
    opinions,
    pair_in,
    placed,
    row_id,
    status_of,
    unsubmitted,
    with_others,
)
from afzal.data.parse_votes import fields_read, recorded
from afzal.data.turns import assistant_turn, chat_prompt, messages
from afzal.data.vote_values import pair_of, plain
from afzal.records import Comparison, Item, Ranking, Rating, Response, Turns, Vote

# --- Label Studio: one row per annotation

ANNOTATION = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""Columns of every flat export of Label Studio."""


def is_label_studio(row: Row) -> bool:
    """Whether the row is an annotation with the columns of a flat export, and a Pairwise or Ranker tag has an
    answer."""
    if not (row.keys() >= {*ANNOTATION} and has(row, PROMPTS) and (pair_of(tuple(row)) or has(row, "items"))):
        return False
    return bool(_tags(row))


def label_studio(row: Row, asked: Sequence[str] | None = None) -> Item:
    """One annotation: ``left`` means the first answer, and a Ranker's list is a ranking of ``items``. If there are
    several such tags, their names are axes.

    Args:
        asked: the tags of the source; None for those of this row.
    """
    tags = _tags(row)
    if not tags:
        raise UnusableError("no_votes", "no column holds the answer of a Pairwise or Ranker tag")
    if len(tags) > 1 and any(isinstance(row[tag], str) and row[tag] in SIDES for tag in tags):
        first, second, *_ = tags
        raise RowError(
            "bad_value", second, f"and '{first}' both hold left or right; --columns winner=FIELD names the vote"
        )
    if has(row, "items"):
        names, turns = list_items(array(row, "items"))
    else:
        pair = pair_in(row)
        names, turns = [pair.a, pair.b], [assistant_turn(text(row, field)) for field in (pair.a, pair.b)]
    votes = [(tag, _vote(answer, names, row, tag)) for tag, answer in tags.items()]
    return Item("", chat_prompt(text(row, PROMPTS)), tuple(map(Response, turns)), placed(votes, asked))


def settled_label_studio(entry: Format, sample: Sequence[Row]) -> Format:
    """The format with the names of this source's columns."""
    tags = tuple(dict.fromkeys(tag for row in sample for tag in _tags(row)))
    first = next((row for row in sample if is_label_studio(row)), None)

    def also(keys: tuple[str, ...]) -> Iterable[str]:
        return (*fields_read(keys), *tags)

    if first is None:
        return replace(entry, also=also)
    parse = partial(label_studio, asked=tags)
    pair = pair_of(tuple(first))
    answers = {"answers": "items"} if has(first, "items") or pair is None else {"A": pair.a, "B": pair.b}
    words = f"{' and '.join(tags)} (left: A better; a Ranker's order, best first) of annotator"
    reads = {"prompt": name_of(first, PROMPTS), **answers, "votes": words}
    return replace(entry, reads=reads, also=also, parse=parse)


def _tags(row: Row) -> dict[str, list[Any]]:
    """The answers of Pairwise and Ranker tags by column: ``[{"selected": "left"}]``, also without the list or as JSON.
    If no column has them, the columns with the word ``left`` or ``right``: all, or ``winner``, which ``--columns`` can
    set."""
    objects: dict[str, list[Any]] = {}
    words: dict[str, list[Any]] = {}
    for name, cell in row.items():
        if name in ANNOTATION:
            continue
        if isinstance(cell, str) and cell in SIDES:
            words[name] = [{"selected": cell}]
        parsed = structure(cell) if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{") else cell
        entries = parsed if isinstance(parsed, list) else [parsed]
        answers = [
            entry
            for entry in entries
            if isinstance(entry, Mapping) and (entry.get("selected") in (*SIDES,) or "ranker" in entry)
        ]
        if answers:
            objects[name] = answers
    return objects or ({"winner": words["winner"]} if "winner" in words else words)


def _vote(answers: Sequence[Mapping[str, Any]], names: Sequence[str], row: Row, tag: str) -> Vote:
    facts, answer = recorded(row), answers[0]
    if len(answers) > 1:
        raise RowError("bad_value", tag, f"holds {len(answers)} answers of one annotation")
    if "ranker" in answer:
        return Ranking(tuple((k,) for k in ranked(answer["ranker"], names)), **facts)
    if has(row, "items"):
        raise RowError("bad_value", tag, "names a side, but the row holds a list of items")
    return Comparison(0, 1, SIDES[answer["selected"]], **facts)


# --- Argilla: one row per record

RESPONSES, SUGGESTION = ".responses", ".suggestion"
_OF_RESPONSES = ("", ".users", ".status")
_OF_SUGGESTION = tuple(f"{SUGGESTION}{part}" for part in ("", ".score", ".agent"))
_OF_VERSION_1 = ("-suggestion", "-suggestion-metadata")
_RESPONSE = frozenset({"user_id", "value", "status"})


def is_argilla(row: Row) -> bool:
    """Whether the row holds a prompt, two answers, and a column with the responses to a question."""
    try:
        return has(row, PROMPTS) and bool(_questions(row) and answer_fields(row))
    except RowError:
        return False


def argilla(row: Row, voting: Sequence[str] | None = None) -> Item | Iterator[Item | UnusableError]:
    """A vote per question and user who submitted. A ranking question's value lists the answers from the best; a label
    names the better one; the number of a question about one answer, such as ``rating_1``, is its score. Suggestions are
    models' and not votes.

    Version 2 writes ``question.responses`` with ``.users`` and ``.status``; version 1 writes a list of ``user_id``,
    ``value`` and ``status`` in a column with the question's name.

    Args:
        voting: the questions that are about the order of the answers; each submitted response to them must state one.
            None for all questions, among which responses that state no order are passed over.
    """
    names = answer_fields(row)
    data = {name: row[name] for name in (*names, name_of(row, PROMPTS)) if name}
    responses = [
        response
        for question in _questions(row)
        if voting is None or question in voting
        for response in _responses_to(row, question)
    ]
    votes = []
    for response in responses:
        if response.counts:
            stated = _stated(response, data, names)
            if not stated and voting is not None:
                problem = f"holds {str(response.value)[:40]!r}, which does not order {', '.join(names)}"
                raise RowError("bad_value", _column_of(row, response.question), problem)
            votes += stated
    turns = (_turns(row[name], name) for name in names)
    raw = value(row, PROMPTS)
    prompt = chat_prompt(raw) if isinstance(raw, str) else messages(raw, name_of(row, PROMPTS))
    asked = None if voting is None else {_axis(question, names) for question in voting}
    ident = row_id(row) or (str(row["external_id"]) if has(row, "external_id") else "")
    item = Item(ident, prompt, tuple(map(Response, turns)), placed(votes, asked))
    return with_others(item, unsubmitted(responses), "no submitted response orders the answers")


def settled_argilla(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for the questions of this source that are about the order of the answers. Other questions are counted
    and named."""
    rows = [row for row in sample if is_argilla(row)]
    asked = {question: [r for r in rows if question in _questions(r)] for r in rows for question in _questions(r)}
    voting = tuple(question for question, of in asked.items() if any(_orders(row, question) for row in of))
    if not voting:
        return entry

    def also(keys: tuple[str, ...]) -> Iterable[str]:
        answers = answer_fields(dict.fromkeys(keys))
        response_columns = [f"{question}{part}" for question in asked for part in _PARTS]
        return (*answers, *response_columns, *(key for key in keys if key.endswith(_OF_SUGGESTION)), "external_id")

    votes = " and ".join(_column_of(rows[0], question) for question in voting)
    answers = ", ".join(answer_fields(rows[0]))
    reads = {"prompt": name_of(rows[0], PROMPTS), "answers": answers, "votes": f"{votes} of each user who submitted"}
    counts = {question: sum(_count(row, question) for row in of) for question, of in asked.items()}
    if others := ", ".join(f"{question} {n}" for question, n in counts.items() if question not in voting):
        reads["questions that are not votes, with their responses in the first rows"] = others
    return replace(entry, reads=reads, also=also, parse=lambda row: argilla(row, voting))


_PARTS = ("", *_OF_VERSION_1, *(f"{RESPONSES}{part}" for part in _OF_RESPONSES))


def _turns(raw: Any, name: str) -> Turns:
    return assistant_turn(raw) if isinstance(raw, str) else messages(raw, name)


def _questions(row: Row) -> list[str]:
    """The questions to which the row has a column of responses; empty for a record without any."""
    named = [name.removesuffix(RESPONSES) for name, cell in row.items() if _holds_responses(name, cell)]
    if "external_id" not in row:
        return named
    stated = {name for name in row if f"{name}{_OF_VERSION_1[0]}" in row}
    return named + [name for name, cell in row.items() if name in stated or _is_of_version_1(cell)]


def _holds_responses(name: str, cell: Any) -> bool:
    listed = isinstance(cell, list | tuple) or (isinstance(cell, str) and cell.lstrip().startswith("["))
    return name.endswith(RESPONSES) and name != RESPONSES and listed


def _is_of_version_1(cell: Any) -> bool:
    """Whether a value is a list of responses, or, as old versions of ``datasets`` store it, an object of lists."""
    parsed = structure(cell) if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{") else cell
    entries = parsed if isinstance(parsed, list | tuple) else [parsed]
    return bool(entries) and all(isinstance(entry, Mapping) and entry.keys() == _RESPONSE for entry in entries)


def _column_of(row: Row, question: str) -> str:
    """The name of the column with the responses to a question."""
    name = f"{question}{RESPONSES}"
    return name if name in row else question


def _responses_to(row: Row, question: str) -> list[UserResponse]:
    """Every user's response to a question; without a column of statuses, all count as submitted."""
    name = f"{question}{RESPONSES}"
    if name not in row:
        return [_version_1_response(question, entry) for entry in _entries(row.get(question), question)]
    values = _column(row, name)
    users = _column(row, f"{name}.users") if has(row, f"{name}.users") else [None] * len(values)
    states = _column(row, f"{name}.status") if has(row, f"{name}.status") else [SUBMITTED] * len(values)
    for column, column_values in ((f"{name}.users", users), (f"{name}.status", states)):
        if len(column_values) != len(values):
            raise RowError("bad_value", column, f"has {len(column_values)} entries for {len(values)} responses")
    return [
        UserResponse(question, answer, None if user is None else str(user), str(state or ""))
        for answer, user, state in zip(values, users, states, strict=True)
    ]


def _count(row: Row, question: str) -> int:
    """The number of responses to a question; 0 if they are damaged."""
    try:
        return len(_responses_to(row, question))
    except RowError:
        return 0


def _version_1_response(question: str, entry: Any) -> UserResponse:
    if not isinstance(entry, Mapping) or entry.keys() != _RESPONSE:
        raise RowError("bad_value", question, "holds something other than responses of user_id, value and status")
    answer, user = entry["value"], entry["user_id"]
    if isinstance(answer, Mapping) or (isinstance(answer, list) and answer and isinstance(answer[0], Mapping)):
        answer = list(_entries(answer, question))  # a ranking: the value of each answer with its rank
    return UserResponse(question, answer, None if user is None else str(user), status_of(entry))


def _entries(raw: Any, name: str) -> Sequence[Any]:
    """The objects of a list, which ``datasets`` may also store as an object of lists; none for null."""
    parsed = structure(raw) if isinstance(raw, str) else raw
    if parsed is None:
        return []
    if isinstance(parsed, Mapping):
        if not all(isinstance(part, list | tuple) for part in parsed.values()):
            raise RowError("wrong_type", name, "is an object that holds something other than lists")
        if len({len(part) for part in parsed.values()}) != 1:
            raise RowError("bad_value", name, "is an object whose lists differ in length")
        return [dict(zip(parsed, parts, strict=True)) for parts in zip(*parsed.values(), strict=True)]
    if not isinstance(parsed, list | tuple):
        raise RowError("wrong_type", name, "is not a list; export the records as JSON or parquet")
    return parsed


def _column(row: Row, name: str) -> Sequence[Any]:
    """A list, also as JSON or as Python's ``repr`` in a table's cell."""
    raw = row[name]
    parsed = structure(raw) if isinstance(raw, str) else raw
    if not isinstance(parsed, list | tuple):
        raise RowError("wrong_type", name, "is not a list; export the records as JSON or parquet")
    return parsed


def _stated(given: UserResponse, data: Row, names: Sequence[str]) -> list[tuple[str, Vote]]:
    """(axis, vote) for every vote that a response expresses."""
    axis, place = _axis(given.question, names), _answer_of(given.question, names)
    if place is not None and isinstance(given.value, int | float) and not isinstance(given.value, bool):
        return [(axis, Rating(place, float(given.value), "score", annotator=given.user))]
    return [(axis, vote) for vote in opinions(given, data, names)]


def _answer_of(question: str, names: Sequence[str]) -> int | None:
    """The answer that a question is about, by the end of its name: ``rating_1`` is about ``response_1``."""
    stem, _, side = plain(question).rpartition("_")
    sides = [plain(name).rpartition("_")[2] for name in names]
    return sides.index(side) if stem and side in sides else None


def _axis(question: str, names: Sequence[str]) -> str:
    """A question's name, without the answer that it is about."""
    return question if _answer_of(question, names) is None else plain(question).rpartition("_")[0]


def _orders(row: Row, question: str) -> bool:
    names = answer_fields(row)
    data = {name: row[name] for name in names}
    try:
        return any(each.counts and _stated(each, data, names) for each in _responses_to(row, question))
    except RowError:
        return False
