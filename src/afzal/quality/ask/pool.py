"""The pairs of answers that people can be asked about, and the votes on them so far.

Shapes: N pairs, K responses of an item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from afzal.data import naming_all, remap
from afzal.data.remap import renumbered_votes
from afzal.data.turns import stripped_key
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Ranking, Turns, Vote, preferences, prompt_key, turns_to_json

from .features import FIELD, place, words

Key = tuple[str, str, str]
"""A prompt and two different responses, the smaller text first: identical for a pair and its swapped version."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses of an item: the item's number in the pool, and the numbers of the responses in the item."""

    item: int
    first: int
    second: int


@dataclass(frozen=True, eq=False)
class Pool:
    """Pairs that can be asked about, each listed once, whatever the number and order of its rows.

    Attributes:
        items: the rows.
        pairs: ``[N]``.
        keys: ``[N]`` the texts of each pair.
        number: the number of the pair with a given key.
        short: number of rows with fewer than two responses.
        repeated: number of pairs that repeat an earlier one.
        identical: number of pairs of responses with the same text, about which there is nothing to ask.
        settled: ``[N]`` bool, pairs whose truth a row states; they are used for training but not asked about.
    """

    items: tuple[Item, ...]
    pairs: tuple[Pair, ...]
    keys: tuple[Key, ...]
    number: Mapping[Key, int]
    short: int
    repeated: int
    identical: int
    settled: np.ndarray

    @cached_property
    def words(self) -> np.ndarray:
        """``[N, D]`` hashed words of the first response minus those of the second."""
        return self.differences(words(self.items))

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """``[N]`` the group or prompt of each pair; pairs that share it are not independent."""
        keys = [prompt_key(item) for item in self.items]
        return tuple(keys[pair.item] for pair in self.pairs)

    def find(self, item: int, first: int, second: int) -> int | None:
        """The number of the pair formed by two responses of an item; None if their texts are equal."""
        responses = self.items[item].responses
        texts = _text(responses[first].turns), _text(responses[second].turns)
        return self.number.get(_key(_text(self.items[item].prompt), *texts))

    def differences(self, by_item: Sequence[np.ndarray]) -> np.ndarray:
        """``[N, D]``: from values ``[K, D]`` per item, those of the first response minus those of the second.

        Raises:
            AfzalError: a value is not a finite number; the message names the row.
        """
        for item, values in zip(self.items, by_item, strict=True):
            if not np.isfinite(values).all():
                response, column = np.argwhere(~np.isfinite(values))[0].tolist()
                raise AfzalError(
                    f"the score of response {response} is {values[response, column]}",
                    where=place(item),
                    why="a pair without a score cannot be ranked",
                    remedy="fix the scorer so that it gives a finite number for every response",
                )
        differences = [by_item[p.item][p.first] - by_item[p.item][p.second] for p in self.pairs]
        return np.array(differences) if differences else np.zeros((0, 0))

    def row(self, number: int) -> Item:
        """The item of a pair, with only its two responses and without votes.

        If the item has more than two responses, each of its pairs gets its own id, and the item becomes the group.
        """
        pair = self.pairs[number]
        item = self.items[pair.item]
        if len(item.responses) == 2:
            return replace(item, votes=())
        places = {pair.first: 0, pair.second: 1}
        row = remap(replace(item, votes=()), [places.get(k) for k in range(len(item.responses))])
        return replace(row, id=f"{item.id}/{pair.first}-{pair.second}", group=item.group or item.id)


def join_answers(items: Sequence[Item]) -> list[Item]:
    """Join rows with a single answer to the same prompt into one row, in the place of the first; keep other rows.

    This makes answers that ``afzal generate`` writes one per row comparable. Votes stay with their answers; ``extra``
    is that of the first row, except for the features and the judges, which come from all rows.
    """
    of_prompt: dict[str, list[Item]] = {}
    for item in items:
        if len(item.responses) == 1:
            of_prompt.setdefault(_text(item.prompt), []).append(item)
    joined = []
    for item in items:
        rows = of_prompt.get(_text(item.prompt), []) if len(item.responses) == 1 else []
        if len(rows) < 2:
            joined.append(item)
        elif rows[0] is item:
            joined.append(_joined(rows))
    return joined


def _joined(rows: Sequence[Item]) -> Item:
    votes = tuple(v for k, row in enumerate(rows) for v in renumbered_votes(row.votes, [k]))
    features = [row.extra.get(FIELD) for row in rows]
    complete = all(isinstance(f, list) and len(f) == 1 for f in features)
    extra = {**naming_all(rows), **({FIELD: [f[0] for f in features if f]} if complete else {})}
    responses = tuple(row.responses[0] for row in rows)
    return replace(rows[0], responses=responses, votes=votes, extra=extra, gold=())


def pool_of(items: Sequence[Item]) -> Pool:
    """All pairs of different responses of all items, in order, each once."""
    pairs, number, repeated, identical = [], {}, 0, 0
    settled: set[Key] = set()
    for index, item in enumerate(items):
        prompt, texts = _text(item.prompt), [_text(r.turns) for r in item.responses]
        for i, j in combinations(range(len(texts)), 2):
            key = _key(prompt, texts[i], texts[j])
            if key[1] == key[2]:
                identical += 1
            elif key in number:
                repeated += 1
            else:
                number[key] = len(pairs)
                pairs.append(Pair(index, i, j))
            if item.gold:
                settled.add(key)
    short = sum(len(item.responses) < 2 for item in items)
    is_settled = np.array([key in settled for key in number], dtype=bool)
    return Pool(tuple(items), tuple(pairs), tuple(number), number, short, repeated, identical, is_settled)


def refuse_nothing_to_ask(pool: Pool, source: str) -> None:
    """Raise AfzalError if no row has two different responses."""
    if not pool.pairs:
        raise AfzalError(
            "no row has two different responses",
            where=source,
            why=f"{pool.short} rows have fewer than two; {pool.identical} pairs have the same text",
            remedy="sample several answers per prompt with: afzal generate --prompts FILE -n 4 --out answers.jsonl",
        )


def _text(turns: Turns) -> str:
    plain = stripped_key(turns)
    return plain if isinstance(plain, str) else json.dumps(turns_to_json(turns), sort_keys=True)


def _key(prompt: str, first: str, second: str) -> Key:
    return (prompt, first, second) if first <= second else (prompt, second, first)


@dataclass(frozen=True, eq=False)
class Votes:
    """The votes on the pairs of a pool: O opinions, each on one pair.

    Attributes:
        pool: the pairs, including those without votes.
        pair: ``[O]`` int, the pair's number.
        p: ``[O]`` the opinion's probability that the pair's first response is better; a half for a tie, NaN if it
            orders nothing (both bad).
        w: ``[O]`` the opinion's weight, above 0.
        writers: ``[O]`` the models that wrote the two responses, in that order, if the voted row names them. Equal
            texts by different models are one pair to ask about, but each vote counts for the models of its row.
    """

    pool: Pool
    pair: np.ndarray
    p: np.ndarray
    w: np.ndarray
    writers: tuple[tuple[str, str] | None, ...]

    @cached_property
    def cast(self) -> np.ndarray:
        """``[N]`` bool: whether anybody voted on the pair."""
        return np.bincount(self.pair, minlength=len(self.pool.pairs)) > 0

    @cached_property
    def weight(self) -> np.ndarray:
        """``[N]`` summed weight of the opinions that order the pair or call it a tie."""
        return self._sum(np.ones(len(self.p)))

    @cached_property
    def points(self) -> np.ndarray:
        """``[N]`` summed weight of the opinions for the first response; a tie counts half."""
        return self._sum(self.p)

    @property
    def p_first(self) -> np.ndarray:
        """``[N]`` share of the votes for the first response; a half if there are none."""
        return np.where(self.weight > 0, self.points / np.where(self.weight > 0, self.weight, 1.0), 0.5)

    @property
    def disagree(self) -> np.ndarray:
        """``[N]`` bool: whether opinions on the pair differ. If all are ties, they agree."""
        away = np.abs(self.p - self.p_first[self.pair])
        return self._sum(away) > 1e-9 * self.weight

    def _sum(self, values: np.ndarray) -> np.ndarray:
        ordering = ~np.isnan(self.p)
        pairs, amounts = self.pair[ordering], (self.w * values)[ordering]
        return np.bincount(pairs, amounts, minlength=len(self.pool.pairs))


def votes_of(pool: Pool, cast: Mapping[int, Sequence[Vote]] | None = None, axis: str | None = None) -> Votes:
    """The votes on the pairs of a pool; votes on repeated pairs are combined.

    Args:
        cast: the votes of each item by its number in the pool; default: those in the items. The items' known truth is
            added. Each comparison counts, and a ranking counts as its pairwise comparisons; if an item has neither, its
            scores or ranks order its pairs. Votes with weight 0 do not count.
        axis: use only votes on this axis; None for all.
    """
    numbers, p, w, writers = [], [], [], []
    for index, item in enumerate(pool.items):
        item_votes = item.votes if cast is None else cast.get(index, ())
        on_axis = (*(v for v in item_votes if axis is None or v.axis == axis), *item.gold)
        if not on_axis:
            continue
        prompt, texts = _text(item.prompt), [_text(r.turns) for r in item.responses]
        for first, second, share, weight in _opinions(item, on_axis):
            number = pool.number.get(_key(prompt, texts[first], texts[second]))
            if number is not None:  # else the two have the same text
                pair = pool.pairs[number]
                same_order = _text(pool.items[pair.item].responses[pair.first].turns) == texts[first]
                numbers.append(number)
                p.append(np.nan if share is None else share if same_order else 1 - share)
                w.append(weight)
                writers.append(writers_of(item, *((first, second) if same_order else (second, first))))
    return Votes(pool, np.array(numbers, dtype=np.int64), np.array(p), np.array(w), tuple(writers))


def writers_of(item: Item, first: int, second: int) -> tuple[str, str] | None:
    """The models that wrote two responses; None if it is one model, or one is unnamed."""
    a, b = item.responses[first].source, item.responses[second].source
    return (a, b) if a and b and a != b else None


def _opinions(item: Item, votes: Sequence[Vote]) -> list[tuple[int, int, float | None, float]]:
    """(first, second, probability that the first is better or None, weight) of each opinion."""
    compared = [
        comparison
        for v in votes
        if isinstance(v, Comparison | Ranking)
        for comparison in (v.comparisons() if isinstance(v, Ranking) else (v,))
    ]
    if compared:
        return [(v.first, v.second, v.p_first, v.weight) for v in compared if v.weight > 0]
    return [(q.i, q.j, q.p, 1.0) for q in preferences(replace(item, votes=tuple(votes)))]


def places_in(pool: Pool, votes: Votes) -> np.ndarray:
    """``[N]`` int: for each pair of ``pool`` its number among the pairs voted on; -1 if nobody voted on it."""
    cast = votes.cast
    numbers = [votes.pool.number.get(key, -1) for key in pool.keys]
    return np.array([k if k >= 0 and cast[k] else -1 for k in numbers], dtype=np.int64)
