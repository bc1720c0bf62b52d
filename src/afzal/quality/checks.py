"""One class per check. To add one, write a :class:`afzal.quality.finding.Check` and list it in :func:`checks`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from afzal.data.dataset import Losses
from afzal.data.turns import full_text
from afzal.quality.categories import Balance, Categories
from afzal.quality.columns import Column, FirstIds, clusters, distinct, extend, repeated
from afzal.quality.finding import CLEANED, Check, Finding, Severity, add_nothing, finding
from afzal.quality.item_facts import ItemFacts, ItemTable
from afzal.quality.media import MissingMedia, OddImages, OddSounds, RepeatedMedia
from afzal.quality.private import PersonalData, Private, Secrets
from afzal.quality.relations import Contradictions, Cycles, DuplicateIds, DuplicateItems, Edges
from afzal.quality.shortcuts import FormatBias, LengthBiasByType, SourceBias
from afzal.quality.thresholds import (
    LENGTH_BIAS_MAJOR,
    LENGTH_BIAS_MINOR,
    LENGTH_BIAS_PAIRS,
    LONG_CHARACTERS,
    LOW_AGREEMENT,
    LOW_CLASS_SHARE,
)
from afzal.records import Comparison, Item, Ranking, Rating, comparisons, scores
from afzal.stats.intervals import share


class _Counting:
    """Counts the affected items (or pairs), and keeps the first ids."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self.ids = FirstIds()

    def hit(self, item: Item) -> None:
        """Count an affected item."""
        self.count += 1
        self.ids.add(item.id)


class DroppedRows:
    """Rows that gave no item, and dropped parts of rows."""

    add = add_nothing

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        reasons = ", ".join(f"{reason} {n}" for reason, n in losses.counts.most_common())
        severity: Severity = "major" if losses.rows else "minor" if losses.parts else "ok"
        message = f"{losses.rows} of {rows} rows dropped" + (f", {losses.parts} in part" if losses.parts else "")
        message += f": {reasons}" if reasons else ""
        ids = [drop.where for drop in losses.first]
        return finding("dropped_rows", severity, losses.rows, rows, message, "fix or remove these rows", ids)


class IdenticalPairs(_Counting):
    """Ordered pairs whose two answers differ at most in white space at the ends: no gradient, no meaning."""

    wants = "pairs"

    raw = 0

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            for pair in facts.pairs:
                if facts.answers[pair.i] == facts.answers[pair.j]:
                    self.hit(facts.item)
                    first, second = facts.item.responses[pair.i], facts.item.responses[pair.j]
                    self.raw += first.turns == second.turns

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not table.pairs:
            return None
        message = f"{self.count} of {table.pairs} pairs have chosen == rejected ({self.raw} to the letter)"
        severity: Severity = "major" if self.count else "ok"
        return finding("identical_pairs", severity, self.count, table.pairs, message, CLEANED, self.ids)


class RepeatedPrompts:
    """Prompts in more than one item: not wrong, but splits must keep them together."""

    add = add_nothing

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        n_repeated = sum(len(places) for places in repeated(table.groups)) if table.prompted else 0
        if not n_repeated:
            return None
        message = f"{n_repeated} of {table.items} items share a prompt, or the opening of a dialogue, with another"
        return finding("repeated_prompts", "ok", n_repeated, table.items, message + "; splits keep them together")


class NoOrder(_Counting):
    """Items whose votes order nothing: ties, or answers that are all bad."""

    def add(self, batch: Sequence[ItemFacts]) -> None:
        voted = [facts for facts in batch if facts.item.votes and not facts.labels]
        self.total += len(voted)
        for facts in voted:
            if len(facts.pairs) == facts.vote_facts.ties:
                self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self.total:
            return None
        severity: Severity = "major" if self.count == self.total else "ok"
        message = f"{self.count} of {self.total} items prefer no answer (ties, or all bad)"
        remedy = "add items with a preference: from these, no order can be learned"
        return finding("no_order", severity, self.count, self.total, message, remedy, self.ids)


class LengthBias:
    """How often the longer answer is preferred, with pairs by weight, without ties and equal lengths."""

    wants = "pairs"

    def __init__(self) -> None:
        self._prompts, self._longer, self._weights = Column("q"), bytearray(), Column("d")

    def add(self, batch: Sequence[ItemFacts]) -> None:
        decided = [
            (facts.prompt_key, gap > 0, pair.weight)
            for facts in batch
            for pair in facts.pairs
            if pair.p != 0.5 and (gap := facts.lengths[pair.i] - facts.lengths[pair.j]) and pair.weight > 0
        ]
        extend((self._prompts, self._longer, self._weights), decided)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        total = len(self._longer)
        if not total:
            return None
        rate = share(clusters(self._prompts, self._longer, self._weights))
        low, high = rate.ends
        severity: Severity = "ok"
        if total >= LENGTH_BIAS_PAIRS and (low > LENGTH_BIAS_MINOR or high < 1 - LENGTH_BIAS_MINOR):
            severity = "major" if low > LENGTH_BIAS_MAJOR or high < 1 - LENGTH_BIAS_MAJOR else "minor"
        message = f"the longer answer is preferred in {rate.value:.1%} of {total} pairs "
        message += f"(95% interval {low:.1%}-{high:.1%})"
        remedy = "a model may learn length instead of quality: watch the lengths of its samples"
        return finding("length_bias", severity, sum(self._longer), total, message, remedy, rate=rate)


class LabelBalance:
    """Share of good labels in unpaired data."""

    wants = "labels"

    def __init__(self) -> None:
        self._prompts, self._good = Column("q"), bytearray()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            for label in facts.labels:
                if label is not None:
                    self._prompts.append(facts.prompt_key)
                    self._good.append(label)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        total = len(self._good)
        if not total:
            return None
        n_good, rate = sum(self._good), share(clusters(self._prompts, self._good))
        rarer = min(n_good, total - n_good) / total
        severity: Severity = "major" if rarer == 0 else "minor" if rarer < LOW_CLASS_SHARE else "ok"
        message = f"{n_good} answers are good and {total - n_good} bad ({n_good / total:.1%} good)"
        remedy = "KTO needs both kinds; weigh the rarer one up (desirable_weight, undesirable_weight)"
        if rarer == 0:
            remedy = "KTO needs both kinds: add the other one" + (
                "; good answers alone can train sft" if n_good else ""
            )
        return finding("label_balance", severity, n_good, total, message, remedy, rate=rate)


class Agreement(_Counting):
    """How often two votes on the same two answers (and axis) agree; a tie is a separate outcome."""

    def __init__(self) -> None:
        super().__init__()
        self._prompts, self._agreed = Column("q"), bytearray()

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if len(facts.item.votes) > 1]:
            agreeing, pairs = _agreeing(facts.item)
            self._prompts.extend([facts.prompt_key] * pairs)
            self._agreed.extend([1] * agreeing + [0] * (pairs - agreeing))
            if agreeing < pairs:
                self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self._agreed:
            return None
        rate, n_agreeing, total = share(clusters(self._prompts, self._agreed)), sum(self._agreed), len(self._agreed)
        message = f"two votes on the same answers agree in {rate.value:.1%} of {total} cases; "
        message += f"{self.count} items are disputed"
        severity: Severity = "minor" if rate.value < LOW_AGREEMENT else "ok"
        remedy = "clarify the guideline, or ask more people"
        return finding("agreement", severity, n_agreeing, total, message, remedy, self.ids, rate)


class ScoreMismatches(_Counting):
    """Pairs whose scores or ratings contradict the stated order."""

    wants = "pairs"

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if facts.vote_facts.measured]:
            mean_scores = _mean_scores(facts.item) if len(facts.item.votes) > 1 else ()
            for pair in facts.pairs:
                gap = pair.margin
                if mean_scores and (a := mean_scores[pair.i]) is not None and (b := mean_scores[pair.j]) is not None:
                    gap = a - b
                if gap is not None:
                    self.total += 1
                    if pair.p > 0.5 and gap < 0:
                        self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self.total:
            return None
        message = f"{self.count} of {self.total} scored pairs have chosen scored below rejected"
        remedy = "check which of score and order is right"
        severity: Severity = "minor" if self.count else "ok"
        return finding("score_mismatches", severity, self.count, self.total, message, remedy, self.ids)


class OverLong(_Counting):
    """Items longer than common context windows (16,000 characters are about 4,000 English tokens)."""

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if len(facts.full_text) > LONG_CHARACTERS or not facts.plain]:
            if _size(facts) > LONG_CHARACTERS:
                self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        message = f"{self.count} of {table.items} items have more than {LONG_CHARACTERS:,} characters"
        remedy = "they may be cut or dropped: see how many with --model M"
        severity: Severity = "minor" if self.count else "ok"
        return finding("over_long", severity, self.count, table.items, message, remedy, self.ids)


class EmptyPrompts(_Counting):
    """Items without a prompt, if others have one."""

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in [facts for facts in batch if not facts.prompt_text or facts.prompt_text.isspace()]:
            self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if self.count in (0, table.items):
            return None
        message = f"{self.count} of {table.items} items have an empty prompt"
        return finding("empty_prompts", "minor", self.count, table.items, message, "check these rows", self.ids)


class ContinuedAnswers(_Counting):
    """Pairs in which one answer is the beginning of the other: they teach where to stop."""

    wants = "pairs"

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            for pair in facts.pairs:
                a, b = facts.answers[pair.i], facts.answers[pair.j]
                if not (isinstance(a, str) and isinstance(b, str)):
                    a, b = _words(facts, pair.i), _words(facts, pair.j)
                if a != b and (a.startswith(b) or b.startswith(a)):
                    self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not self.count:
            return None
        message = f"in {self.count} of {table.pairs} pairs one answer is the beginning of the other"
        return finding("continued_answers", "ok", self.count, table.pairs, message, "", self.ids)


class OnePrompt:
    """Too few prompts to hold some out."""

    add = add_nothing

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding | None:
        if not table.prompted or distinct(table.groups) > 1:
            return None
        message = "all items share one prompt: nothing can be held out for evaluation"
        return finding("one_prompt", "minor", 1, table.items, message, "add prompts, or give --eval-data")


@dataclass(frozen=True, slots=True)
class Shared:
    """State that several checks share; it is updated before them."""

    edges: Edges
    categories: Categories
    private: Private


def checks(shared: Shared) -> list[Check]:
    """All checks, in the order of the report."""
    return [
        DroppedRows(),
        IdenticalPairs(),
        Contradictions(shared.edges),
        Cycles(shared.edges),
        DuplicateItems(),
        NoOrder(),
        LabelBalance(),
        LengthBias(),
        LengthBiasByType(shared.categories),
        FormatBias(shared.categories),
        SourceBias(),
        Agreement(),
        ScoreMismatches(),
        Balance(shared.categories),
        OverLong(),
        EmptyPrompts(),
        DuplicateIds(),
        PersonalData(shared.private),
        Secrets(shared.private),
        MissingMedia(),
        OddImages(),
        OddSounds(),
        RepeatedMedia(),
        RepeatedPrompts(),
        ContinuedAnswers(),
        OnePrompt(),
    ]


def _mean_scores(item: Item) -> tuple[float | None, ...]:
    """Mean scores of the responses of an item that is both rated and compared; else ()."""
    categories = {(type(vote), getattr(vote, "kind", "")) for vote in item.votes}
    both = (Rating, "score") in categories and any(kind in (Comparison, Ranking) for kind, _ in categories)
    return scores(item) if both else ()


def _agreeing(item: Item) -> tuple[int, int]:
    """(agreeing pairs of votes, pairs of votes) over all pairs of answers of an item; weight 0 does not count."""
    by_pair: dict[object, Counter[object]] = defaultdict(Counter)
    for vote in comparisons(vote for vote in item.votes if vote.weight > 0):
        vote = vote if vote.first < vote.second else vote.swap()
        by_pair[vote.first, vote.second, vote.axis][vote.outcome] += 1
    agreeing = sum(n * (n - 1) // 2 for counts in by_pair.values() for n in counts.values())
    return agreeing, sum(_choose_two(sum(counts.values())) for counts in by_pair.values())


def _choose_two(n: int) -> int:
    return n * (n - 1) // 2


def _words(facts: ItemFacts, response: int) -> str:
    """An answer's words without white space at the ends."""
    answer = facts.answers[response]
    return answer if isinstance(answer, str) else facts.texts[response].strip()


def _size(facts: ItemFacts) -> int:
    """Characters of the prompt and of the longest response, whichever turn they are in."""
    if isinstance(facts.item.prompt, str) or all(len(response.turns) == 1 for response in facts.item.responses):
        return len(facts.prompt_text) + max(facts.lengths, default=0)
    return len(facts.prompt_text) + max((len(full_text(r.turns)) for r in facts.item.responses), default=0)
