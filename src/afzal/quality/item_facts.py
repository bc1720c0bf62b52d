"""The items as the checks see them: each item by itself, and facts about all items together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from afzal.data.turns import answer_text, full_text, stripped_key
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


class VoteFacts:
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
class ItemFacts:
    """One item and its texts and votes; not frozen, for speed, since every item gets one.

    Attributes:
        index: number of the item.
        plain: whether prompt and answers are texts (:attr:`afzal.records.Item.is_plain`).
        prompt_text: text of the prompt, unchanged.
        prompt_key: a hash of the prompt, without white space at the ends.
        answers: the responses, without white space at the ends.
        texts: text of each response, unchanged; ``lengths`` are their characters.
        full_text: the texts of the prompt and of all responses, joined.
        media: the images and sounds of the entire item.
        vote_facts: facts from its votes; ``pairs`` are the preferences among them.
        labels: good, bad or None per response; () if single responses are not labelled.
    """

    item: Item
    index: int
    plain: bool
    prompt_text: str
    prompt_key: int
    answers: tuple[object, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    full_text: str
    media: tuple[Media, ...]
    vote_facts: VoteFacts
    pairs: tuple[Preference, ...]
    labels: tuple[bool | None, ...]


@dataclass(slots=True)
class ItemTable:
    """Facts about the items so far, in columns with one number per item.

    Attributes:
        ids: the items' ids.
        prompts: hashes of the prompts, ``ItemFacts.prompt_key``.
        prompt_texts: hashes of the unchanged text and the media of the prompts.
        groups: hashes of the groups that must not be split.
        media: hashes of the images and sounds of the entire item, in order.
        pairs: number of pairs.
        prompted: whether any prompt is not empty.
    """

    ids: Names = field(default_factory=Names)
    prompts: Column = field(default_factory=lambda: Column("q"))
    prompt_texts: Column = field(default_factory=lambda: Column("q"))
    groups: Column = field(default_factory=lambda: Column("q"))
    media: Column = field(default_factory=lambda: Column("q"))
    pairs: int = 0
    prompted: bool = False
    _vote_facts: VoteFacts | None = None
    _n_read: int = 0

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.prompts)

    @property
    def units(self) -> Column:
        """The independent units: prompts, or groups if there are no prompts."""
        return self.prompts if self.prompted else self.groups

    def read(self, item: Item) -> ItemFacts:
        """Read the next item; a call of :meth:`add` must follow."""
        facts = read_item(item, self._n_read, self._vote_facts)
        self._vote_facts = facts.vote_facts
        self._n_read += 1
        return facts

    def add(self, batch: Sequence[ItemFacts]) -> None:
        """Add more items."""
        self.ids.extend([facts.item.id for facts in batch])
        self.prompts.extend([facts.prompt_key for facts in batch])
        self.prompt_texts.extend([_prompt_hash(facts) if facts.media else hash(facts.prompt_text) for facts in batch])
        self.media.extend([hash(facts.media) for facts in batch])
        self.groups.extend([hash(folded_prompt(facts.item)) for facts in batch])
        self.pairs += sum([len(facts.pairs) for facts in batch])
        self.prompted = self.prompted or any(facts.item.prompt != "" for facts in batch)


def _prompt_hash(facts: ItemFacts) -> int:
    media = media_of(facts.item.prompt)
    return hash((facts.prompt_text, media)) if media else hash(facts.prompt_text)


def read_item(item: Item, index: int = 0, previous: VoteFacts | None = None) -> ItemFacts:
    """Read one item.

    Args:
        previous: facts from the previous item's votes, reused if the votes are the same object.
    """
    vote_facts = previous if previous is not None and previous.votes is item.votes else VoteFacts(item)
    prompt, plain, turns = item.prompt, item.is_plain, tuple([response.turns for response in item.responses])
    if plain:  # as below, without a call for each text
        prompt_text, texts, media = cast(str, prompt), cast("tuple[str, ...]", turns), ()
        answers, key = tuple([text.strip() for text in texts]), hash(prompt_text.strip())
    else:
        prompt_text, texts, media = full_text(prompt), tuple([_text(t) for t in turns]), media_of(item)
        answers, key = tuple([stripped_key(t) for t in turns]), hash(stripped_key(prompt))
    joined_texts, lengths = "\n".join((prompt_text, *texts)), tuple([len(text) for text in texts])
    item_labels = labels(item) if vote_facts.labelled else ()
    return ItemFacts(
        item,
        index,
        plain,
        prompt_text,
        key,
        answers,
        texts,
        lengths,
        joined_texts,
        media,
        vote_facts,
        vote_facts.pairs,
        item_labels,
    )


def _text(turns: Turns) -> str:
    return turns if isinstance(turns, str) else answer_text(turns)
