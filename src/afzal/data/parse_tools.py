"""Parse exports of annotation tools (Label Studio, Argilla, Potato) with every annotator's votes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.data.fields import (
    Row,
    RowError,
    UnusableError,
    array,
    has,
    mapping,
    name_of,
    number,
    text,
    value,
)
from afzal.data.turns import assistant_turn, chat_prompt, messages
from afzal.data.vote_values import STEMS, Pair, pair_of, plain, read_vote
from afzal.records import Comparison, Item, Ranking, Response, Vote

PROMPTS = "prompt|instruction|question|query|context|input"
SUBMITTED = "submitted"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LISTS = "responses|candidates|options|items|translations|texts"
_KINDS = frozenset({"selection", "scale_value", "rank_order", "best"})
_MARKED = re.compile(r"(?:^|<br\s*/?>|\n)\s*([A-Z])\.\s+")
_SPENT = re.compile(r"(\d+)d (\d+)h (\d+)m (\d+)s")


def with_others(item: Item, others: Sequence[UnusableError], reason: str) -> Item | Iterator[Item | UnusableError]:
    """The item, followed by what people left unfinished, which is no vote and is counted by its reason.

    Raises:
        UnusableError: the item has no votes, and nothing was left unfinished; ``reason`` says so.
    """
    voted = bool(item.votes or item.gold)
    if not voted and not others:
        raise UnusableError("no_votes", reason)
    return iter([*([item] if voted else ()), *others]) if others else item


def row_id(row: Row) -> str:
    """The id that the tool gave the row; "" if it has none."""
    return str(row["id"]) if has(row, "id") else ""


def pair_in(data: Row) -> Pair:
    """The two answers among the fields of a task."""
    pair = pair_of(tuple(data))
    if pair is None:
        raise RowError("missing_field", "answer1", "is missing in the data, or answer2 is")
    return pair


def argilla_records(row: Row) -> Item | Iterator[Item | UnusableError]:
    """``fields`` with a prompt and answers, and every user's submitted responses to a ranking or a label question.

    Responses are grouped by question, as the SDK writes them, or by user, as the server does. A label that names one of
    more than two answers means that it is better than each of the others. Models' suggestions are not votes. Drafts and
    discarded responses are not either; each is counted as such.
    """
    data = mapping(row, "fields")
    names = answer_fields(data)
    raw_prompt = value(data, PROMPTS)
    prompt = chat_prompt(raw_prompt) if isinstance(raw_prompt, str) else messages(raw_prompt, "fields")
    responses = list(_user_responses(value(row, "responses")))
    votes = [(r.question, vote) for r in responses if r.counts for vote in opinions(r, data, names)]
    turns = (assistant_turn(v) if isinstance(v := data[name], str) else messages(v, name) for name in names)
    item = Item(row_id(row), prompt, tuple(map(Response, turns)), placed(votes))
    return with_others(item, unsubmitted(responses), "no submitted response orders the answers")


@dataclass(frozen=True, slots=True)
class UserResponse:
    """A user's response to a question of Argilla; ``status`` is submitted, draft, discarded, or "" if it is null."""

    question: str
    value: Any
    user: str | None
    status: str

    @property
    def counts(self) -> bool:
        """Whether it was submitted."""
        return self.status == SUBMITTED


def unsubmitted(responses: Iterable[UserResponse]) -> list[UnusableError]:
    """One for each draft and discarded response, which answers all questions of a record together."""
    unfinished = dict.fromkeys((r.user, r.status) for r in responses if not r.counts)
    return [
        UnusableError(status or "no_status", f"the response of {user} was not submitted") for user, status in unfinished
    ]


def placed(votes: Sequence[tuple[str, Vote]], asked: Collection[str] | None = None) -> tuple[Vote, ...]:
    """The votes; if there are several questions, the question's name is a vote's axis.

    Args:
        asked: the questions of the source; None for those of these votes.
    """
    is_single = len({name for name, _ in votes} if asked is None else asked) == 1
    return tuple(vote if is_single else replace(vote, axis=name) for name, vote in votes)


def answer_fields(data: Row) -> list[str]:
    """The answer fields: one stem with numbers or letters, in order."""
    by_plain_name = {plain(name): name for name in data}
    for stem in STEMS:
        for sides in ([str(n) for n in range(27)], list(_LETTERS)):
            names = [by_plain_name[f"{stem}_{side}"] for side in sides if f"{stem}_{side}" in by_plain_name]
            if len(names) > 1:
                return names
    raise RowError("missing_field", "fields", "holds no two answers, such as response_1 and response_2")


def _user_responses(responses: Any) -> Iterator[UserResponse]:
    """Every response, grouped by question or by user; one without a status counts as submitted."""
    if isinstance(responses, Mapping):
        for question, entries in responses.items():
            for entry in entries if isinstance(entries, list) else [entries]:
                if isinstance(entry, Mapping):
                    yield UserResponse(str(question), entry.get("value"), _user(entry), status_of(entry))
        return
    for entry in responses if isinstance(responses, list | tuple) else ():
        if isinstance(entry, Mapping):
            values = entry.get("values") or ({} if status_of(entry) == SUBMITTED else {"": None})
            for question, entry_value in values.items():
                answer = entry_value.get("value") if isinstance(entry_value, Mapping) else entry_value
                yield UserResponse(str(question), answer, _user(entry), status_of(entry))


def status_of(entry: Row) -> str:
    """The status of a response: submitted if none is recorded, "" if it is null."""
    return str(entry.get("status", SUBMITTED) or "")


def _user(entry: Row) -> str | None:
    user_field = name_of(entry, "user_id|user|username")
    return str(entry[user_field]) if user_field else None


def opinions(response: UserResponse, data: Row, names: Sequence[str]) -> Iterable[Vote]:
    """The votes that a response expresses; none if it answers another kind of question."""
    stated, user, places = response.value, response.user, _places(names, data)
    if isinstance(stated, list | tuple):
        groups = _argilla_groups(stated, places)
        return [Ranking(groups, annotator=user)] if groups else []
    if not isinstance(stated, str):
        return []
    best = places.get(plain(stated))
    if best is not None and len(names) > 2:
        return [Comparison(best, k, "first", annotator=user) for k in range(len(names)) if k != best]
    try:
        outcome, strength = read_vote(stated, pair_in(data), data, "responses")
    except (RowError, UnusableError):
        return []
    return [Comparison(0, 1, outcome, strength, annotator=user)]


def _argilla_groups(entries: Sequence[Any], places: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """The groups of a ranking question's value: names from best to worst, or names with ranks (equal ranks are
    tied)."""
    by_rank: dict[float, list[int]] = {}
    for k, entry in enumerate(entries):
        name = entry.get("value") if isinstance(entry, Mapping) else entry
        rank = entry.get("rank") if isinstance(entry, Mapping) else k
        place = places.get(plain(str(name)))
        if place is None or rank is None:
            return ()
        by_rank.setdefault(rank, []).append(place)
    groups = tuple(tuple(by_rank[rank]) for rank in sorted(by_rank))
    return groups if _names_each_once(groups) else ()


def _names_each_once(groups: Sequence[Sequence[int]]) -> bool:
    """Whether groups name two or more responses, each once."""
    numbers = [k for group in groups for k in group]
    return len(numbers) > 1 and len(set(numbers)) == len(numbers)


def _places(names: Sequence[str], texts: Row | Sequence[str]) -> dict[str, int]:
    """The index of each answer by each of its names: field, number, letter, text."""
    answer_texts = [texts[name] for name in names] if isinstance(texts, Mapping) else list(texts)
    places: dict[str, int] = {}
    for k, name in enumerate(names):
        for alias in (plain(name), plain(name).rsplit("_", 1)[-1], _LETTERS[k % 26], str(answer_texts[k]).strip()):
            places.setdefault(alias, k)
    return places


def potato(row: Row) -> Item:
    """Potato's annotations of one user on one instance, with the instance's texts.

    Pairwise: ``selection`` A, B or tie, or ``scale_value``, **below 0 for the left answer**. Ranking: ``rank_order``
    from the best, ``=`` for ties. Best-worst: ``best`` and ``worst``. If there are several schemes, their names are
    axes.
    """
    answers = _texts(row)
    if len(answers) < 2:
        raise UnusableError("no_pair", "fewer than two texts were compared")
    facts = {"annotator": _user(row), "seconds": _seconds(row.get("behavioral_data"))}
    schemes = mapping(row, "label_annotations|labels|annotations")
    votes = [(str(name), vote) for name, answer in schemes.items() for vote in _potato_votes(answer, answers, facts)]
    if not votes:
        raise UnusableError("no_votes", "no pairwise, ranking or best-worst scheme has an answer")
    prompt_field = name_of(row, PROMPTS + "|text|source")
    return Item(
        "",
        chat_prompt(str(row[prompt_field])) if prompt_field else (),
        tuple(Response(assistant_turn(a)) for a in answers),
        placed(votes),
    )


def is_potato(row: Row) -> bool:
    """Whether the row holds answers to a pairwise, ranking or best-worst scheme."""
    schemes = row.get(name_of(row, "label_annotations|labels|annotations"))
    answers = schemes.values() if isinstance(schemes, Mapping) else ()
    return any(isinstance(scheme, Mapping) and not _KINDS.isdisjoint(scheme) for scheme in answers)


def _texts(row: Row) -> list[str]:
    """The compared texts: a list, ``left`` and ``right``, or the displayed text split at its marks A., B., ..."""
    if has(row, _LISTS):
        return [str(entry) for entry in array(row, _LISTS)]
    if has(row, "left") and has(row, "right"):
        return [text(row, "left"), text(row, "right")]
    shown = row.get("displayed_text")
    parts = _MARKED.split(shown) if isinstance(shown, str) else []
    if len(parts) >= 5 and parts[1::2] == list(_LETTERS.upper()[: len(parts[1::2])]):
        return [re.sub(r"<br\s*/?>$", "", part.strip()).strip() for part in parts[2::2]]
    raise RowError(
        "missing_field", "responses", "is missing: Potato names instances by id; put its data file next to its output"
    )


def _potato_votes(answer: Any, answers: Sequence[str], facts: Mapping[str, Any]) -> Iterator[Vote]:
    if not isinstance(answer, Mapping):
        return
    if answer.get("selection"):
        pair = Pair("a", "b", ("a", "b"))
        outcome, _ = read_vote(answer["selection"], pair, dict(zip("ab", answers, strict=False)), "selection")
        yield Comparison(0, 1, outcome, **facts)
    elif has(answer, "scale_value"):
        liking = -number(answer, "scale_value")
        outcome = "tie" if liking == 0 else "first" if liking > 0 else "second"
        yield Comparison(0, 1, outcome, strength=abs(liking), **facts)
    elif answer.get("rank_order"):
        order = text(answer, "rank_order").split(",")
        groups = tuple(tuple(_place(name, answers, "rank_order") for name in group.split("=")) for group in order)
        if not _names_each_once(groups):
            raise RowError("bad_value", "rank_order", "does not name two or more items, each once")
        yield Ranking(groups, **facts)
    elif answer.get("best") and answer.get("worst"):
        best, worst = (_place(str(answer[name]), answers, name) for name in ("best", "worst"))
        yield from (Comparison(best, k, "first", **facts) for k in range(len(answers)) if k != best)
        yield from (Comparison(k, worst, "first", **facts) for k in range(len(answers)) if k not in (best, worst))


def _place(name: str, answers: Sequence[str], field: str) -> int:
    """The index of the answer that a name, letter, number or text refers to."""
    places = _places([f"item_{letter}" for letter in _LETTERS[: len(answers)]], answers)
    place = places.get(plain(name), places.get(name.strip()))
    if place is None:
        raise RowError("bad_value", field, f"names {name.strip()[:40]!r}, which is not one of the items")
    return place


def _seconds(behaviour: Any) -> float | None:
    """Seconds on an instance, as a number or as Potato's ``"Time spent: 0d 0h 1m 12s"``."""
    if not isinstance(behaviour, Mapping):
        return None
    spent = behaviour.get("time_spent", behaviour.get("total_time"))
    if isinstance(spent, int | float) and not isinstance(spent, bool):
        return float(spent)
    parts = _SPENT.search(str(behaviour.get("time_string", "")))
    if parts is None:
        return None
    days, hours, minutes, seconds = map(int, parts.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
