"""Detect prompts of a test set in the training data: runs of 13 words, or the full text of a shorter prompt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from afzal.data.dataset import Losses
from afzal.data.turns import full_text
from afzal.quality.columns import FirstIds
from afzal.quality.finding import Finding, Severity, finding, percent
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.thresholds import GRAM, MANY_OVERLAPS
from afzal.records import Item, Turns
from afzal.stats.intervals import clustered, share

# Chinese and Japanese have no spaces between words: every character there is one.
_UNSPACED = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_TEMPLATE_PROMPTS, _TEMPLATE_SHARE = 10, 0.05


class HeldOutPrompts:
    """Prompts that must not occur in any item.

    A run of words in more than ten of them, and in more than 5%, is a template and is ignored.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        places: defaultdict[int, list[int]] = defaultdict(list)
        self.keys: list[int] = []
        for item in items:
            words = words_of(item.prompt)
            if words:
                for run in set(runs(words)):
                    places[run].append(len(self.keys))
                self.keys.append(hash(tuple(words)))
        limit = max(_TEMPLATE_PROMPTS, _TEMPLATE_SHARE * len(self.keys))
        self.places = {run: prompts for run, prompts in places.items() if len({self.keys[k] for k in prompts}) <= limit}


class Overlap:
    """Test prompts that share 13 consecutive words with an item's prompt; shorter ones must be equal."""

    def __init__(self, tests: HeldOutPrompts) -> None:
        self._tests, self._ids, self._items = tests, FirstIds(), 0
        self._hit: set[int] = set()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            places = self._tests.places
            shared = [run for run in runs(words_of(facts.item.prompt)) if run in places]
            if shared:
                self._items += 1
                self._ids.add(facts.item.id)
                self._hit.update(prompt for run in shared for prompt in places[run])

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        total, count = len(self._tests.keys), len(self._hit)
        if not total:
            return None
        rate = share(clustered(self._tests.keys, [float(prompt in self._hit) for prompt in range(total)]))
        severity: Severity = "major" if rate.value > MANY_OVERLAPS else "minor" if count else "ok"
        message = f"{count} of {total} test prompts, {percent(rate)}, share {GRAM} words in a row with, or are, "
        message += f"the prompts of {self._items} of {table.items} items"
        remedy = "remove these items, or results on the test set will be too good"
        return finding("overlap", severity, count, total, message, remedy, self._ids, rate)


def words_of(prompt: Turns) -> list[str]:
    """The words of a prompt, without case and punctuation; system messages, which many prompts share, are skipped."""
    if not isinstance(prompt, str):
        prompt = tuple(message for message in prompt if message.role != "system")
    return WORD.findall(full_text(prompt).casefold())


def runs(words: list[str]) -> Iterator[int]:
    """Hashes of all runs of 13 words; of all words if there are fewer, none if there are no words."""
    if len(words) < GRAM:
        if words:
            yield hash(("whole", *words))
        return
    yield from map(hash, zip(*(words[k:] for k in range(GRAM)), strict=False))
