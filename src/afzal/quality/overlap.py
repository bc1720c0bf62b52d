"""Prompts of a test set that stand in the training data: runs of 13 words, or the whole of a shorter prompt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from afzal.data.dataset import Losses
from afzal.data.turns import full_text
from afzal.quality.columns import FirstIds
from afzal.quality.finding import Finding, Severity, finding, percent
from afzal.quality.thresholds import GRAM, MANY_OVERLAPS
from afzal.quality.view import Told, View
from afzal.records import Item, Turns
from afzal.stats.intervals import clustered, share

# Chinese and Japanese have no spaces between words: every character there is one.
_UNSPACED = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_TEMPLATE_PROMPTS, _TEMPLATE_SHARE = 10, 0.05


class HeldOutPrompts:
    """Prompts that no item may hold.

    A run of words that stands in more than ten of them, and in more than 5 %, is a template and says nothing.
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
        many = max(_TEMPLATE_PROMPTS, _TEMPLATE_SHARE * len(self.keys))
        self.places = {run: at for run, at in places.items() if len({self.keys[k] for k in at}) <= many}


class Overlap:
    """Test prompts that share 13 words in a row with an item's prompt, or are the same when they are shorter."""

    def __init__(self, tests: HeldOutPrompts) -> None:
        self._tests, self._ids, self._items = tests, FirstIds(), 0
        self._hit: set[int] = set()

    def add(self, batch: Sequence[Told]) -> None:
        for told in batch:
            places = self._tests.places
            met = [run for run in runs(words_of(told.item.prompt)) if run in places]
            if met:
                self._items += 1
                self._ids.add(told.item.id)
                self._hit.update(at for run in met for at in places[run])

    def finding(self, view: View, losses: Losses, rows: int) -> Finding | None:
        total, count = len(self._tests.keys), len(self._hit)
        if not total:
            return None
        known = share(clustered(self._tests.keys, [float(at in self._hit) for at in range(total)]))
        severity: Severity = "major" if known.value > MANY_OVERLAPS else "minor" if count else "ok"
        message = f"{count} of {total} test prompts, {percent(known)}, share {GRAM} words in a row with, or are, "
        message += f"the prompts of {self._items} of {view.items} items"
        remedy = "remove these items, or figures on the test set say too much"
        return finding("overlap", severity, count, total, message, remedy, self._ids, known)


def words_of(prompt: Turns) -> list[str]:
    """The words of a prompt, case and punctuation folded; system messages, which many prompts share, are left out."""
    if not isinstance(prompt, str):
        prompt = tuple(message for message in prompt if message.role != "system")
    return WORD.findall(full_text(prompt).casefold())


def runs(words: list[str]) -> Iterator[int]:
    """Hashes of every 13 words in a row; of all words where there are fewer, none where there is no word."""
    if len(words) < GRAM:
        if words:
            yield hash(("whole", *words))
        return
    yield from map(hash, zip(*(words[k:] for k in range(GRAM)), strict=False))
