"""One item after another as the findings look at it, and what they ask of all items together."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from afzal.data.turns import answer_text, full_text, stripped
from afzal.quality.columns import Names
from afzal.records import Item, Preference, Rating, folded_prompt, labels, media_of, preferences


@dataclass(frozen=True, slots=True)
class Told:
    """One item and what it says.

    Attributes:
        at: its number among the items.
        asked: the words of the prompt as they stand.
        key: a hash of what was asked, without white space at the ends.
        answers: what was said, without white space at the ends; one answer per response.
        texts: the words of each answer as they stand; ``lengths`` their characters.
        pairs: the preferences derived from its votes, the better first.
        labels: per response good, bad or None; () where single responses are not called good or bad.
    """

    item: Item
    at: int
    asked: str
    key: int
    answers: tuple[object, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
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
    prompts: array[int] = field(default_factory=lambda: array("q"))
    asked: array[int] = field(default_factory=lambda: array("q"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    media: array[int] = field(default_factory=lambda: array("q"))
    pairs: int = 0
    prompted: bool = False

    @property
    def items(self) -> int:
        """How many items there are."""
        return len(self.prompts)

    @property
    def units(self) -> array[int]:
        """What is independent of each other: prompts, or what must not be split where there are none."""
        return self.prompts if self.prompted else self.groups

    def add(self, item: Item) -> Told:
        """Look at one more item."""
        told = tell(item, self.items)
        self.ids.append(item.id)
        self.prompts.append(told.key)
        shown = media_of(item.prompt)
        self.asked.append(hash((told.asked, shown)) if shown else hash(told.asked))
        self.media.append(hash(media_of(item)))
        self.groups.append(hash(folded_prompt(item)))
        self.pairs += len(told.pairs)
        self.prompted = self.prompted or item.prompt != ""
        return told


def tell(item: Item, at: int = 0) -> Told:
    """One item and what it says."""
    turns = [response.turns for response in item.responses]
    answers = tuple([stripped(t) for t in turns])
    texts = tuple([t if isinstance(t, str) else answer_text(t) for t in turns])
    lengths = tuple(map(len, texts))
    stated = labels(item) if is_labelled(item) else ()
    key = hash(stripped(item.prompt))
    return Told(item, at, full_text(item.prompt), key, answers, texts, lengths, preferences(item), stated)


def is_labelled(item: Item) -> bool:
    """Whether single responses are called good or bad."""
    # a list, since it takes half the time of a generator for one vote
    return True in [isinstance(vote, Rating) and vote.kind == "label" for vote in item.votes]
