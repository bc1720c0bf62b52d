"""One item after another as the findings look at it, and what they ask of all items together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from afzal.data.turns import answer_text, full_text, stripped
from afzal.quality.columns import Column, Names
from afzal.records import (
    Comparison,
    Item,
    Media,
    Preference,
    Rating,
    Turns,
    folded_prompt,
    labels,
    media_of,
    preferences,
)


class Stated:
    """What votes come to by themselves, whatever they are about; rows that state the order alone share theirs.

    Attributes:
        pairs: the preferences derived from them, the better first.
        labelled: whether single responses are called good or bad.
        measured: whether the pairs may have scores: a margin, or ratings among several votes.
        ties, soft: pairs with probability 1/2, and those neither certain nor tied.
        both_bad: votes that say that both responses are bad.
        annotators: who voted, and ``axes`` on what the pairs were compared, or rated where nothing was compared.
        opinions: what :func:`afzal.quality.relations.opinion` says of the only vote, by whether it is turned.
    """

    __slots__ = ("annotators", "axes", "both_bad", "labelled", "measured", "opinions", "pairs", "soft", "ties", "votes")

    def __init__(self, item: Item) -> None:
        self.votes = item.votes
        self.pairs = preferences(item)
        # a list, since it takes half the time of a generator for one vote
        self.labelled = True in [isinstance(vote, Rating) and vote.kind == "label" for vote in self.votes]
        self.measured = len(self.votes) > 1 or [pair.margin for pair in self.pairs] != [None] * len(self.pairs)
        certainties = [pair.p for pair in self.pairs]
        self.ties = certainties.count(0.5)
        self.soft = len(certainties) - self.ties - certainties.count(1.0)
        self.both_bad = [isinstance(vote, Comparison) and vote.p_first is None for vote in self.votes].count(True)
        self.opinions: dict[bool, int] = {}
        self.annotators = {vote.annotator for vote in self.votes if vote.annotator}
        compared = [vote for vote in self.votes if not isinstance(vote, Rating)]
        self.axes = {vote.axis for vote in compared or self.votes if vote.axis is not None}


@dataclass(slots=True)
class Told:
    """One item and what it says; not frozen, since one is made for every item.

    Attributes:
        at: its number among the items.
        plain: whether prompt and answers are texts, as :attr:`afzal.records.Item.is_plain` says.
        asked: the words of the prompt as they stand.
        key: a hash of what was asked, without white space at the ends.
        answers: what was said, without white space at the ends; one answer per response.
        texts: the words of each answer as they stand; ``lengths`` their characters.
        words: those of the prompt and of all answers, one after another.
        media: the images and sounds of the whole item.
        stated: what its votes come to; ``pairs`` are the preferences among it.
        labels: per response good, bad or None; () where single responses are not called good or bad.
    """

    item: Item
    at: int
    plain: bool
    asked: str
    key: int
    answers: tuple[object, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    words: str
    media: tuple[Media, ...]
    stated: Stated
    pairs: tuple[Preference, ...]
    labels: tuple[bool | None, ...]


@dataclass(slots=True)
class View:
    """What there is to know about the items so far, in columns with one number per item.

    Attributes:
        ids: their ids.
        prompts: hashes of what was asked, ``Told.key``.
        asked: hashes of the prompts' words as they stand, and of what they show.
        groups: hashes of what must not be split.
        media: hashes of the images and sounds of the whole item, in order.
        pairs: how many pairs they make.
        prompted: whether any prompt is not empty.
    """

    ids: Names = field(default_factory=Names)
    prompts: Column = field(default_factory=lambda: Column("q"))
    asked: Column = field(default_factory=lambda: Column("q"))
    groups: Column = field(default_factory=lambda: Column("q"))
    media: Column = field(default_factory=lambda: Column("q"))
    pairs: int = 0
    prompted: bool = False
    _stated: Stated | None = None
    _told: int = 0

    @property
    def items(self) -> int:
        """How many items there are."""
        return len(self.prompts)

    @property
    def units(self) -> Column:
        """What is independent of each other: prompts, or what must not be split where there are none."""
        return self.prompts if self.prompted else self.groups

    def told(self, item: Item) -> Told:
        """The next item, and what it says; :meth:`add` is to follow."""
        told = tell(item, self._told, self._stated)
        self._stated = told.stated
        self._told += 1
        return told

    def add(self, batch: Sequence[Told]) -> None:
        """Look at some more items."""
        self.ids.extend([told.item.id for told in batch])
        self.prompts.extend([told.key for told in batch])
        self.asked.extend([_shown(told) if told.media else hash(told.asked) for told in batch])
        self.media.extend([hash(told.media) for told in batch])
        self.groups.extend([hash(folded_prompt(told.item)) for told in batch])
        self.pairs += sum([len(told.pairs) for told in batch])
        self.prompted = self.prompted or any(told.item.prompt != "" for told in batch)


def _shown(told: Told) -> int:
    shown = media_of(told.item.prompt)
    return hash((told.asked, shown)) if shown else hash(told.asked)


def tell(item: Item, at: int = 0, before: Stated | None = None) -> Told:
    """One item and what it says.

    Args:
        before: what the votes of the item before come to, which is taken where they are the same object.
    """
    stated = before if before is not None and before.votes is item.votes else Stated(item)
    prompt, plain, turns = item.prompt, item.is_plain, tuple([response.turns for response in item.responses])
    if plain:  # what is written below, without a call for each text
        asked, texts, media = cast(str, prompt), cast("tuple[str, ...]", turns), ()
        answers, key = tuple([text.strip() for text in texts]), hash(asked.strip())
    else:
        asked, texts, media = full_text(prompt), tuple([_text(t) for t in turns]), media_of(item)
        answers, key = tuple([stripped(t) for t in turns]), hash(stripped(prompt))
    words, lengths = "\n".join((asked, *texts)), tuple([len(text) for text in texts])
    called = labels(item) if stated.labelled else ()
    return Told(item, at, plain, asked, key, answers, texts, lengths, words, media, stated, stated.pairs, called)


def _text(turns: Turns) -> str:
    return turns if isinstance(turns, str) else answer_text(turns)
