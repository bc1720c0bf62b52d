"""The items as the checks see them: each item by itself, and facts about all items together."""

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
    """Facts that follow from an item's votes alone; rows with the same votes object share it.

    Attributes:
        pairs: the preferences derived from the votes, the better response first.
        labelled: whether single responses are labelled good or bad.
        measured: whether the pairs may have scores: a margin, or ratings among several votes.
        ties, soft: number of pairs with probability 1/2, and of pairs neither certain nor tied.
        both_bad: number of votes that call both responses bad.
        annotators: the voters; ``axes`` are those of comparisons, or of ratings if nothing was compared.
        opinions: :func:`afzal.quality.relations.opinion` of the only vote, by whether it is turned.
    """

    __slots__ = ("annotators", "axes", "both_bad", "labelled", "measured", "opinions", "pairs", "soft", "ties", "votes")

    def __init__(self, item: Item) -> None:
        self.votes = item.votes
        self.pairs = preferences(item)
        # a list takes half the time of a generator for one vote
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
    """One item and its texts and votes; not frozen, for speed, since every item gets one.

    Attributes:
        at: number of the item.
        plain: whether prompt and answers are texts (:attr:`afzal.records.Item.is_plain`).
        asked: text of the prompt, unchanged.
        key: a hash of the prompt, without white space at the ends.
        answers: the responses, without white space at the ends.
        texts: text of each response, unchanged; ``lengths`` are their characters.
        words: the texts of the prompt and of all responses, joined.
        media: the images and sounds of the entire item.
        stated: facts from its votes; ``pairs`` are the preferences among them.
        labels: good, bad or None per response; () if single responses are not labelled.
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
    """Facts about the items so far, in columns with one number per item.

    Attributes:
        ids: the items' ids.
        prompts: hashes of the prompts, ``Told.key``.
        asked: hashes of the unchanged text and the media of the prompts.
        groups: hashes of the groups that must not be split.
        media: hashes of the images and sounds of the entire item, in order.
        pairs: number of pairs.
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
        """Number of items."""
        return len(self.prompts)

    @property
    def units(self) -> Column:
        """The independent units: prompts, or groups if there are no prompts."""
        return self.prompts if self.prompted else self.groups

    def told(self, item: Item) -> Told:
        """Read the next item; a call of :meth:`add` must follow."""
        told = tell(item, self._told, self._stated)
        self._stated = told.stated
        self._told += 1
        return told

    def add(self, batch: Sequence[Told]) -> None:
        """Add more items."""
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
    """Read one item.

    Args:
        before: facts from the previous item's votes, reused if the votes are the same object.
    """
    stated = before if before is not None and before.votes is item.votes else Stated(item)
    prompt, plain, turns = item.prompt, item.is_plain, tuple([response.turns for response in item.responses])
    if plain:  # as below, without a call for each text
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
