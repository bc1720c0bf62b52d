"""Audit a data set: counts, and findings with numbers, ids and remedies."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from afzal.data import Dataset, Reading
from afzal.data.dataset import Fingerprint, Losses
from afzal.quality.categories import Categories
from afzal.quality.checks import Shared, checks
from afzal.quality.columns import distinct
from afzal.quality.finding import Check, Finding, NotRun, add_nothing, wants
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.near_duplicates import Deep, Texts
from afzal.quality.private import Private
from afzal.quality.relations import Edges
from afzal.records import Item


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts and findings of a data set; ``dataclasses.asdict`` makes it JSON.

    Attributes:
        rows, kept: rows read, and rows that gave an item; ``rows == kept + dropped rows``.
        pairs, ties, soft: pairs derived by :func:`afzal.records.preferences`, pairs with probability 1/2, and pairs
            neither certain nor tied.
        good, bad: responses labelled so.
        characters: median, 95% quantile and maximum length of prompts and of responses.
        not_run: checks that were not run, and how to run them.
    """

    source: str
    format: str
    fingerprint: str
    rows: int
    kept: int
    items: int
    prompts: int
    groups: int
    responses_per_item: dict[str, int]
    pairs: int
    ties: int
    both_bad: int
    soft: int
    good: int
    bad: int
    annotators: int
    axes: tuple[str, ...]
    characters: dict[str, dict[str, int]]
    drops: dict[str, int]
    findings: list[Finding]
    not_run: list[NotRun]

    @property
    def worst(self) -> Literal["ok", "minor", "major"]:
        """The severity of the worst finding."""
        severities = {finding.severity for finding in self.findings}
        return "major" if "major" in severities else "minor" if "minor" in severities else "ok"


def audit(dataset: Dataset, extra: Sequence[Check] = (), deep: Deep = "never") -> Audit:
    """Audit a data set; needs no model and no tokenizer.

    Args:
        extra: additional checks.
        deep: when to compare texts with each other, which takes about half a second per 1,000 items.
    """
    ledger = Ledger(extra, deep)
    for item in dataset.items:
        ledger.add(item)
    return ledger.audit(dataset.source, dataset.format, dataset.rows, dataset.losses, dataset.fingerprint)


def audit_stream(reading: Reading, extra: Sequence[Check] = (), deep: Deep = "never") -> Audit:
    """Audit a source while reading it, so that its items need not be in memory at the same time."""
    ledger, digest = Ledger(extra, deep), Fingerprint()
    for item in reading.items():
        ledger.add(item)
        digest.add(item)
    return ledger.audit(reading.source, reading.format, reading.rows, reading.losses, digest.hexdigest())


BATCH, BATCH_CHARACTERS = 256, 2**20  # items gathered before they are checked together


class Ledger:
    """The state of an audit after the items so far."""

    def __init__(self, extra: Sequence[Check] = (), deep: Deep = "never") -> None:
        self._table, self._texts = ItemTable(), Texts(deep)
        self._shared = Shared(Edges(), Categories(), Private())
        self._checks = [*checks(self._shared), *extra]
        shared = self._shared
        # Checks of pairs, labels or media are not called for items without them.
        active = [check for check in self._checks if type(check).add is not add_nothing]
        self._adds = [shared.private.add, self._texts.add, *(check.add for check in active if wants(check) == "items")]
        self._of_pairs = [shared.edges.add, *(check.add for check in active if wants(check) == "pairs")]
        self._of_labels = [check.add for check in active if wants(check) == "labels"]
        self._of_media = [check.add for check in active if wants(check) == "media"]
        self._sizes: Counter[int] = Counter()
        self._prompt_lengths: Counter[int] = Counter()
        self._response_lengths: Counter[int] = Counter()
        self._annotators: set[str] = set()
        self._axes: set[str] = set()
        self._good = self._bad = self._ties = self._soft = self._both_bad = 0
        self._batch: list[ItemFacts] = []
        self._characters = 0

    def add(self, item: Item) -> None:
        """Add one more item."""
        facts = self._table.read(item)
        self._batch.append(facts)
        self._characters += len(facts.full_text)
        if len(self._batch) >= BATCH or self._characters >= BATCH_CHARACTERS:
            self._check_batch()

    def _check_batch(self) -> None:
        """Check the gathered items."""
        batch, self._batch, self._characters = self._batch, [], 0
        self._table.add(batch)
        with_pairs, with_labels = [facts for facts in batch if facts.pairs], [facts for facts in batch if facts.labels]
        with_media = [facts for facts in batch if facts.media]
        self._shared.categories.add([facts for facts in batch if facts.item.extra])
        for adds, facts_group in (
            (self._adds, batch),
            (self._of_pairs, with_pairs),
            (self._of_labels, with_labels),
            (self._of_media, with_media),
        ):
            for add in adds if facts_group else ():
                add(facts_group)
        self._sizes.update([len(facts.texts) for facts in batch])
        self._prompt_lengths.update([len(facts.prompt_text) for facts in batch])
        self._response_lengths.update(chain.from_iterable([facts.lengths for facts in batch]))
        for vote_facts, n in Counter([facts.vote_facts for facts in batch]).items():
            self._annotators |= vote_facts.annotators
            self._axes |= vote_facts.axes
            self._both_bad += n * vote_facts.both_bad
            self._ties += n * vote_facts.ties
            self._soft += n * vote_facts.soft
        for facts in with_labels:
            if facts.vote_facts.labelled:
                self._good += facts.labels.count(True)
                self._bad += facts.labels.count(False)

    def audit(self, source: str, format: str, rows: int, losses: Losses, fingerprint: str) -> Audit:
        """The audit of the items so far; ``losses`` and ``rows`` are those of the source."""
        self._check_batch()
        table = self._table
        findings = [finding for check in self._checks if (finding := check.finding(table, losses, rows)) is not None]
        findings += self._texts.findings(table)
        return Audit(
            source=source,
            format=format,
            fingerprint=fingerprint,
            rows=rows,
            kept=rows - losses.rows,
            items=table.items,
            prompts=distinct(table.prompt_texts),
            groups=distinct(table.groups),
            responses_per_item={str(k): n for k, n in sorted(self._sizes.items())},
            pairs=table.pairs,
            ties=self._ties,
            both_bad=self._both_bad,
            soft=self._soft,
            good=self._good,
            bad=self._bad,
            annotators=len(self._annotators),
            axes=tuple(sorted(self._axes)),
            characters={"prompt": _lengths(self._prompt_lengths), "response": _lengths(self._response_lengths)},
            drops=dict(losses.counts.most_common()),
            findings=findings,
            not_run=self._texts.not_run(),
        )


def _lengths(counts: Counter[int]) -> dict[str, int]:
    """Median, 95% quantile and maximum of lengths, given how often each occurs."""
    values, ends = sorted(counts), []
    for length in values:
        ends.append(counts[length] + (ends[-1] if ends else 0))
    total = ends[-1] if ends else 0

    def quantile_at(q: float) -> int:
        return values[bisect_right(ends, place(total, q))] if total else 0

    return {"median": quantile_at(0.5), "p95": quantile_at(0.95), "max": quantile_at(1.0)}


def quantile(values: Sequence[int], q: float) -> int:
    """The smallest of the sorted values that at least a share ``q`` does not exceed; 0 if there are none."""
    return values[place(len(values), q)] if values else 0


def place(n: int, q: float) -> int:
    """The index of the ``q`` quantile among ``n`` sorted values."""
    return min(n - 1, max(0, -int(-q * n // 1) - 1))
