"""Parse tables of votes: one row per vote, or one row per pair with several annotators' votes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
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
from afzal.data.remap import moved_votes
from afzal.data.turns import answer_text, ask, exact_key, messages, reply
from afzal.data.votewords import Pair, pair_of, plain, read_vote
from afzal.records import Comparison, Item, Rating, Response, Turns, Vote

PROMPTS = "prompt|instruction|question|query|context"
ANSWERS = "response|completion|answer|output"
SCORES = "score|rating"
WINNERS = ("winner", "preference", "preferred", "choice", "vote", "verdict", "label", "better", "preferred_response")
_WHO = ("annotator", "worker", "rater", "user", "labeler", "evaluator", "expert", "judge")
ANNOTATORS = "|".join((*_WHO, *(f"{who}_id" for who in _WHO), *(f"{who}_name" for who in _WHO)))
SECONDS = "seconds|lead_time|time_spent|duration_seconds|time_per_example"
TIMES = "at|timestamp|created_at|submitted_at|tstamp"
_BESIDE = "|".join((ANNOTATORS, SECONDS, TIMES, "vote_id|annotation_id"))
_LISTS = ("votes", "annotations", "preferences", "winners", "labels", "judgments", "verdicts", "human_votes", "choices")
_OF_ONE = re.compile(rf"({'|'.join(_WHO)}|voter|person|vote|winner|preference|choice|label|verdict)_?(?=[^_].*)(.+)")
_ONES = re.compile(r"(.+)_(vote|winner|preference|choice|verdict)")
_NO_VOTE = re.compile(
    r"(?:.*_)?(?:id|ids|name|email|model|time|seconds|comment|comments|note|notes|reason|confidence|count)"
)


def fits(row: Row) -> bool:
    """Whether the row has a prompt, two answers whose names differ in the side, and one winner with a known value."""
    pair, winner = pair_of(tuple(row)), _winner(tuple(row))
    if pair is None or winner is None or not _is_complete(row, pair):
        return False
    return _known(row[winner], winner, replace(pair, counts=True), row) is True


def unknown_winner(row: Row) -> RowError | None:
    """The error of a vote whose value is unknown, if the row lacks nothing else; None for other rows."""
    pair, winner = pair_of(tuple(row)), _winner(tuple(row))
    if pair is None or winner is None or not _is_complete(row, pair):
        return None
    try:
        read_vote(row[winner], replace(pair, counts=True), row, winner)
    except RowError as error:
        return error
    except UnusableError:
        return None
    return None


def fits_wide(row: Row) -> bool:
    """Whether the row holds a prompt, two answers, and votes of several annotators with known values."""
    pair, keys = pair_of(tuple(row)), tuple(row)
    if pair is None or not _is_complete(row, pair):
        return False
    loose = replace(pair, counts=True)
    if held := _votes_field(keys):
        entries = _entries(row[held], held) if isinstance(row[held], list | tuple | Mapping) else ()
        known = [_known(got, field, loose, row) for got, field, _ in entries]
        return True in known and False not in known
    return sum(_known(row[name], name, loose, row) is True for name in _candidates(keys)) > 1


def fields_read(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of these fields that are read: two answers and their models, a winner, an annotator and facts about the
    vote."""
    pair, winner = pair_of(keys), _winner(keys)
    facts = (name for name in _BESIDE.split("|") if name in keys)
    return (*_answers(pair), *((winner,) if winner else ()), *facts)


def settled(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for rows of one vote each, adapted to these first rows: whether 1, 2 and 0 are counts or sides."""
    counts = _are_counts(row.get(name) for row in sample if (name := _winner(tuple(row))))
    first = next((row for row in sample if fits(row)), {})
    pair, winner = pair_of(tuple(first)), _winner(tuple(first))
    if pair is None or winner is None:  # the format was given by name, and no row is a vote
        return replace(entry, parse=lambda row: vote(row, counts))
    reads = dict(
        zip(entry.reads, (name_of(first, PROMPTS), pair.a, pair.b, f"{winner} {_vote_values(pair)}"), strict=True)
    )
    return replace(entry, reads=reads, parse=lambda row: vote(row, counts, (winner, pair.a, pair.b)))


def settled_wide(entry: Format, sample: Sequence[Row]) -> Format:
    """The format for rows of several votes each: which columns are annotators, and whether 1, 2 and 0 are counts.

    A column whose name denotes an annotator needs known values in most of the first rows; one with any other name, such
    as ``ann``, needs words for the two sides in all of them.
    """
    pairs = [(row, replace(pair, counts=True)) for row in sample if (pair := pair_of(tuple(row)))]
    names = tuple(name for name in dict.fromkeys(n for row in sample for n in row) if _is_column(name, pairs))
    counts = _are_counts(got for row in sample for got, *_ in _votes_in(row, names))

    def also(keys: tuple[str, ...]) -> Iterable[str]:
        return (*fields_read(keys), *names, *filter(None, [_votes_field(keys)]))

    return replace(entry, parse=lambda row: wide_vote(row, names, counts), also=also)


def _vote_values(pair: Pair) -> str:
    return f"({pair.sides[0]}, {pair.sides[1]}, tie or both_bad); rows on the same answers are one item"


def _are_counts(values: Iterable[Any]) -> bool:
    """Whether both 1 and 2 are among the values, so that 0 is not one of the two sides."""
    return {"1", "2"} <= {str(got).strip().removesuffix(".0") for got in values}


def vote(row: Row, counts: bool = False, usual: tuple[str, ...] = ("winner", "response_a", "response_b")) -> Item:
    """One vote on two answers; :func:`joined` joins rows with the same prompt and the same two answers.

    Args:
        usual: the names that most rows of the source use for the vote and the two answers, for messages.
    """
    pair, winner = pair_of(tuple(row)), _winner(tuple(row))
    if pair is None or winner is None:
        missing = next((name for name in usual if name not in row), None)
        raise RowError("missing_field", missing or usual[0], "is missing" if missing else "is not the only such field")
    outcome, strength = read_vote(row[winner], replace(pair, counts=counts), row, winner)
    return _item(row, pair, (Comparison(0, 1, outcome, strength, weight=weight(row), **_recorded(row)),))


def wide_vote(row: Row, columns: tuple[str, ...] = (), counts: bool = False) -> Item:
    """The votes of several annotators on two answers; an empty cell is not a vote."""
    pair = pair_of(tuple(row))
    if pair is None:
        raise RowError("missing_field", "response_a", "is missing, or the other answer is")
    pair, votes = replace(pair, counts=counts), []
    for got, field, about in _votes_in(row, columns):
        if got is None or (isinstance(got, str) and not got.strip()) or got != got:
            continue
        outcome, strength = read_vote(got, pair, row, field)
        votes.append(Comparison(0, 1, outcome, strength, weight=weight(row), **about))
    if not votes:
        raise UnusableError("no_votes", "nobody voted")
    return _item(row, pair, tuple(votes))


def rated(row: Row) -> Item:
    """One annotator's score of one answer, larger is better; :func:`joined` joins rows with the same prompt."""
    source = name_of(row, "model|source|generator|response_source")
    answer = Response(_reply(row, ANSWERS), str(row[source]) if source else None)
    rating = Rating(0, number(row, SCORES), "score", weight(row), **_recorded(row))
    return Item("", _asked(row), (answer,), (rating,))


def joined(items: Iterable[Item]) -> list[Item]:
    """Join items with the same prompt and answers into one, with all votes and the first one's place and id.

    If rows have the same two answers in different orders, each row's order is taken as the order shown. Items of one
    answer each are joined by their prompt.
    """
    by_question: dict[tuple[Hashable, frozenset[Hashable]], list[Item]] = {}
    for item in items:
        answers = (
            frozenset(exact_key(response.turns) for response in item.responses)
            if len(item.responses) > 1
            else frozenset()
        )
        by_question.setdefault((exact_key(item.prompt), answers), []).append(item)
    return [same[0] if len(same) == 1 else _as_one(same) for same in by_question.values()]


def together(items: Iterable[Item]) -> list[Item]:
    """Join items with the same prompt and the same two or more answers, if different annotators voted on them.

    Vote files of other tools hold one vote per row. If an annotator has already voted on the joined item, the question
    was asked again as a separate question, and the items stay separate.
    """
    merged: list[list[Item]] = []
    open_: dict[tuple[Hashable, frozenset[Hashable]], tuple[list[Item], set[str]]] = {}
    for item in items:
        key = exact_key(item.prompt), frozenset(exact_key(response.turns) for response in item.responses)
        names = {vote.annotator for vote in item.votes if vote.annotator is not None}
        same, heard = open_.get(key, ([], set()))
        if len(item.responses) > 1 and same and names and not names & heard:
            same.append(item)
            heard |= names
        else:
            open_[key] = [item], names
            merged.append(open_[key][0])
    return [same[0] if len(same) == 1 else _as_one(same) for same in merged]


def _as_one(same: Sequence[Item]) -> Item:
    first = same[0]
    if len({exact_key(r.turns) for r in first.responses}) < len(first.responses):
        return replace(first, votes=tuple(v for item in same for v in item.votes))
    responses = {exact_key(r.turns): r for item in reversed(same) for r in reversed(item.responses)}
    keys = dict.fromkeys(exact_key(r.turns) for item in same for r in item.responses)
    place = {key: k for k, key in enumerate(keys)}
    orders = [[place[exact_key(response.turns)] for response in item.responses] for item in same]
    votes = [moved_votes(item.votes, order) for item, order in zip(same, orders, strict=True)]
    if len(place) == 2 and {(0, 1), (1, 0)} == set(map(tuple, orders)):
        votes = [[_shown(v, order[0]) for v in some] for some, order in zip(votes, orders, strict=True)]
    gold = [moved_votes(item.gold, order) for item, order in zip(same, orders, strict=True)]
    all_votes, all_gold = (tuple(chain.from_iterable(parts)) for parts in (votes, gold))
    return replace(first, responses=tuple(map(responses.__getitem__, place)), votes=all_votes, gold=all_gold)


def _shown(vote: Vote, first: int) -> Vote:
    if not isinstance(vote, Comparison):
        return vote
    upright = vote if vote.first < vote.second else vote.swap()
    return replace(upright, shown_first=first) if vote.shown_first is None else upright


def _item(row: Row, pair: Pair, votes: tuple[Comparison, ...]) -> Item:
    names = [tuple(row.get(field) for field in fields) for fields in pair.names]
    sources = next(((a, b) for a, b in names if isinstance(a, str) and isinstance(b, str)), (None, None))
    responses = (Response(_reply(row, name), source) for name, source in zip((pair.a, pair.b), sources, strict=True))
    return Item("", _asked(row), tuple(responses), votes)


def _asked(row: Row) -> Turns:
    prompt = value(row, PROMPTS)
    return ask(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")


def _reply(row: Row, names: str) -> Turns:
    raw, name = value(row, names), name_of(row, names)
    turns = messages(raw, name) if isinstance(raw, list | dict) else reply(text(row, name))
    if not any(m.role == "assistant" for m in turns) and answer_text(turns):
        raise RowError("bad_value", name, "holds no answer of the assistant")
    return turns


def _recorded(row: Row) -> dict[str, Any]:
    """The annotator, duration, time and id of a vote."""
    who, at, name = (name_of(row, names) for names in (ANNOTATORS, TIMES, "vote_id|annotation_id"))
    return {
        "annotator": str(row[who]).strip() or None if who else None,
        "seconds": optional_number(row, SECONDS),
        "at": _time(row[at]) if at else None,
        "id": str(row[name]) if name else None,
    }


def _time(given: Any) -> str:
    """A time as text; seconds since 1970 become ISO 8601."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e11:
        return str(given)
    return datetime.fromtimestamp(given, UTC).isoformat()


@lru_cache(maxsize=256)
def _winner(keys: tuple[str, ...]) -> str | None:
    """The only field with a vote; among several, the one named ``winner``, which ``--columns`` can set."""
    known = [name for name in keys if plain(name) in WINNERS]
    return known[0] if len(known) == 1 else "winner" if "winner" in known else None


def _answers(pair: Pair | None) -> tuple[str, ...]:
    return () if pair is None else (pair.a, pair.b, *(field for fields in pair.names for field in fields))


def _is_complete(row: Row, pair: Pair) -> bool:
    return has(row, PROMPTS) and all(row[name] is not None for name in (pair.a, pair.b))


def _known(got: Any, field: str, pair: Pair, row: Row) -> bool | None:
    """Whether a value is a known vote on the pair; None if it is empty."""
    try:
        read_vote(got, pair, row, field)
    except RowError:
        return False
    except UnusableError:
        return None
    return True


@lru_cache(maxsize=256)
def _votes_field(keys: tuple[str, ...]) -> str:
    """The field with the votes of all annotators, if there is exactly one."""
    held = [name for name in keys if plain(name) in _LISTS]
    return held[0] if len(held) == 1 else ""


@lru_cache(maxsize=256)
def _candidates(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that may hold one annotator's votes."""
    read = (*_answers(pair_of(keys)), *PROMPTS.split("|"))
    return tuple(name for name in keys if name not in read and not _NO_VOTE.fullmatch(plain(name)))


def _is_column(name: str, pairs: Sequence[tuple[Row, Pair]]) -> bool:
    present = [(row, pair) for row, pair in pairs if name in row and name in _candidates(tuple(row))]
    known = [_known(row[name], name, pair, row) for row, pair in present]
    if _annotator_in(name):
        return known.count(True) > 4 * known.count(False)
    return True in known and False not in known and not any(is_numeral(str(row[name])) for row, _ in present)


def _annotator_in(column: str) -> str:
    """The annotator in a column's name: ``winner_ann`` and ``ann_vote`` give ann, ``annotator1`` gives itself."""
    word = plain(column)
    if match := _OF_ONE.fullmatch(word):
        return column if match[1] in (*_WHO, "voter", "person") or match[2].isdigit() else match[2]
    match = _ONES.fullmatch(word)
    return match[1] if match else ""


def _votes_in(row: Row, columns: tuple[str, ...]) -> list[tuple[Any, str, dict[str, Any]]]:
    """(value, field, facts about the vote) for every annotator of a row."""
    held = _votes_field(tuple(row))
    if held:
        return list(_entries(row[held], held))
    return [(row[name], name, {"annotator": _annotator_in(name) or name}) for name in columns if name in row]


def _entries(given: Any, field: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """The votes in a field: by name, in order, or as objects."""
    if isinstance(given, Mapping):
        for who, got in given.items():
            yield got, field, {"annotator": str(who).strip()}
        return
    if not isinstance(given, list | tuple):
        raise RowError("wrong_type", field, "is neither a list of votes nor an object of them")
    for k, entry in enumerate(given, 1):
        if not isinstance(entry, Mapping):
            yield entry, field, {"annotator": f"{field} {k}"}
        elif winner := _winner(tuple(entry)):
            yield entry[winner], winner, _recorded(entry)
        else:
            raise RowError("missing_field", f"{field}[].winner", "is missing")
