"""A judge whose verdicts are in a file, from another tool or from an earlier ``afzal judge``.

Three layouts are read; in each, a row names its item by ``id`` or ``idx``: lines of ``verdicts.jsonl``; rows with a
mapping ``judges`` from names to verdicts; tables with one column of verdicts per judge. Verdicts of the last two are in
the item's numbering; a list of two gives both orders of a pair, the second with the answers swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.data import files
from afzal.errors import AfzalError
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.verdicts import Outcome
from afzal.records import Item

_WORDS: dict[str, Outcome] = {
    **dict.fromkeys(("1", "first"), "first"),
    **dict.fromkeys(("2", "second"), "second"),
    **dict.fromkeys(("0", "tie"), "tie"),
    **dict.fromkeys(("none", "garbage", "error"), "none"),
    "both_bad": "both_bad",
}
_IDS = ("id", "idx")
OWN = frozenset({"id", "pair", "judge", "order", "verdict"})
_ABSENT = "the file holds no verdict on this pair"


def judges_in(path: str) -> list[str]:
    """The names of the judges in a file of verdicts, in order.

    Raises:
        AfzalError: the file cannot be read, or holds no verdicts.
    """
    rows = _rows(path)
    first = rows[0][1]
    if first.keys() >= OWN:
        names = list(dict.fromkeys(str(row["judge"]) for _, row in rows if "judge" in row))
    elif isinstance(first.get("judges"), Mapping):
        names = list(dict.fromkeys(name for _, row in rows for name in row.get("judges") or {}))
    else:
        columns = [name for name in first if name not in _IDS]
        names = [name for name in columns if all(_is_verdict(row.get(name)) for _, row in rows)]
    if not names or not any(key in first for key in _IDS):
        raise AfzalError(
            f"{path} holds no verdicts of judges",
            why=f"its first row has the fields {', '.join(map(str, first))}",
            remedy="verdicts.jsonl of afzal judge, rows with a mapping called judges, or columns id and one per judge",
        )
    return names


def from_file(path: str, judge: str, items: Sequence[Item], pairs: Sequence[Pair]) -> tuple[list[Game], list[Ruling]]:
    """The games that a file's judge played on these pairs, and its rulings; ``none`` if the file has no verdict.

    Raises:
        AfzalError: a row cannot be read, or the file has only other items.
    """
    place: dict[str, list[Pair]] = {}
    for pair in pairs:
        place.setdefault(items[pair.item].id, []).append(pair)
    results_by_pair: dict[Pair, list[tuple[Game, Ruling]]] = {}
    for where, row in _rows(path):
        name = next((str(row[key]) for key in _IDS if key in row), "")
        if name in place:
            if len({pair.item for pair in place[name]}) > 1:
                raise AfzalError(
                    f"the id {name!r} names several of the rows that are judged",
                    where=where,
                    why="the verdict does not say which of them it is on",
                    remedy="give each row an id of its own, in both files",
                )
            for game, ruling in _parse_any_row(row, judge, place[name], where):
                results_by_pair.setdefault(game.pair, []).append((game, ruling))
    if not results_by_pair:
        raise AfzalError(
            f"{path} holds no verdicts of {judge} on these items",
            why="a verdict belongs to the item with the same id (or idx)",
            remedy="compare the ids of both files",
        )
    results = [
        result
        for pair in pairs
        for result in results_by_pair.get(pair, [(Game(pair, False), Ruling("none", why=_ABSENT))])
    ]
    return [game for game, _ in results], [ruling for _, ruling in results]


def _rows(path: str) -> list[tuple[str, Mapping[str, Any]]]:
    rows = [(raw.where, raw.value) for raw in files.rows(path)]
    broken = next((where for where, value in rows if not isinstance(value, Mapping)), None)
    if not rows or broken is not None:
        raise AfzalError("there are no verdicts to read", where=broken or path)
    return rows  # pyright: ignore[reportReturnType]


def _parse_any_row(row: Mapping[str, Any], judge: str, pairs: Sequence[Pair], where: str) -> list[tuple[Game, Ruling]]:
    if row.keys() >= OWN:
        return [_parse_afzal_row(row, pairs, where)] if row["judge"] == judge else []
    by_judge = row["judges"] if isinstance(row.get("judges"), Mapping) else row
    if judge not in by_judge:
        return []
    if len(pairs) != 1:
        raise AfzalError("a verdict on an item with more than two answers must name the pair it compares", where=where)
    both = by_judge[judge] if isinstance(by_judge[judge], list) else [by_judge[judge]]
    if not 1 <= len(both) <= 2:
        raise AfzalError(f"{judge} has {len(both)} verdicts; one, or one for each order", where=where)
    return [(Game(pairs[0], bool(k)), _ruling(word, where)) for k, word in enumerate(both)]


def parse_row(row: Mapping[str, Any], responses: int, where: str) -> tuple[Game, Ruling]:
    """The game (without texts) and the ruling of a line of ``verdicts.jsonl`` on an item with so many responses.

    Raises:
        AfzalError: the item has no such pair of answers, or the verdict is no known word.
    """
    pair = row["pair"]
    if not isinstance(pair, list) or not all(isinstance(k, int) for k in pair):
        raise AfzalError(f"the pair of answers {pair!r} is not a pair of numbers", where=where)
    numbers = [Pair(0, i, j, "", ("", "")) for i, j in (pair,) if 0 <= i < j < responses] if len(pair) == 2 else []
    return _parse_afzal_row(row, numbers, where)


def _parse_afzal_row(row: Mapping[str, Any], pairs: Sequence[Pair], where: str) -> tuple[Game, Ruling]:
    pair = next((p for p in pairs if [p.first, p.second] == row["pair"]), None)
    if pair is None:
        raise AfzalError(f"the item has no pair of answers {row['pair']}", where=where)
    ruling = _ruling(row["verdict"], where)
    why, token_counts = row.get("why_none") or ruling.why, row.get("tokens") or (0, 0)
    tokens = int(token_counts[0]), int(token_counts[1])
    swapped = row["order"] == [pair.second, pair.first]
    return Game(pair, swapped, row.get("sample", 0)), Ruling(ruling.outcome, row.get("p_first"), why, tokens)


def _is_verdict(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(v is None or str(v).lower() in _WORDS for v in values)


def _ruling(word: Any, where: str) -> Ruling:
    outcome = "none" if word is None else _WORDS.get(str(word).lower())
    if outcome is None:
        raise AfzalError(f"the verdict {word!r} is not one of {', '.join(_WORDS)}", where=where)
    return Ruling(outcome, why="the file says so" if outcome == "none" else "")
