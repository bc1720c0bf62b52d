"""One function per thing to look for. To add one: write ``(View) -> Finding | None`` and list it in ``ALL``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from afzal.data import Dataset
from afzal.data.turns import answer_text, full_text, same_text, stripped
from afzal.quality.clean import duplicate_key
from afzal.quality.stats import wilson
from afzal.records import Comparison, Item, Preference, Rating, labels, preferences, prompt_key

Severity = Literal["ok", "minor", "major"]

SHOWN_IDS = 20
LONG_CHARACTERS = 16_000
MANY_DUPLICATES = 0.05
LENGTH_BIAS_MINOR, LENGTH_BIAS_MAJOR = 0.6, 0.8
LOW_AGREEMENT = 0.6
LOW_CLASS_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for.

    Attributes:
        code: short name, such as ``"contradictions"``.
        severity: ok (nothing to do), minor (know about it), major (mend it first).
        count, total: how many of how many.
        message: what was seen, in one sentence with its numbers.
        remedy: what to do about it; "" when nothing.
        value, low, high: a rate and its 95 % interval, where the finding is one.
        ids: the first 20 items concerned.
    """

    code: str
    severity: Severity
    count: int
    total: int
    message: str
    remedy: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class View:
    """A data set and the pairs derived from it, (item, better-first preference) each."""

    dataset: Dataset
    pairs: list[tuple[Item, Preference]]

    @property
    def items(self) -> list[Item]:
        return self.dataset.items


def is_labelled(item: Item) -> bool:
    """Whether single responses are called good or bad."""
    return any(isinstance(vote, Rating) and vote.kind == "label" for vote in item.votes)


def dropped_rows(view: View) -> Finding:
    """Rows that became no item, and parts of rows left aside."""
    rows = [drop for drop in view.dataset.drops if drop.scope == "row"]
    parts = len(view.dataset.drops) - len(rows)
    reasons = ", ".join(f"{reason} {n}" for reason, n in view.dataset.drop_counts.items())
    severity: Severity = "major" if rows else "minor" if parts else "ok"
    message = f"{len(rows)} of {view.dataset.rows} rows dropped" + (f", {parts} in part" if parts else "")
    message += f": {reasons}" if reasons else ""
    ids = [drop.where for drop in view.dataset.drops]
    return _finding("dropped_rows", severity, len(rows), view.dataset.rows, message, "mend or remove these rows", ids)


def identical_pairs(view: View) -> Finding | None:
    """Ordered pairs whose two answers are the same text but for white space at the ends: no gradient, no meaning."""
    if not view.pairs:
        return None
    hit = [i for i, p in view.pairs if same_text(i.responses[p.i].turns, i.responses[p.j].turns)]
    raw = sum(i.responses[p.i].turns == i.responses[p.j].turns for i, p in view.pairs)
    message = f"{len(hit)} of {len(view.pairs)} pairs have chosen == rejected ({raw} to the letter)"
    return _finding(
        "identical_pairs", "major" if hit else "ok", len(hit), len(view.pairs), message, _CLEANED, _ids(hit)
    )


def duplicate_items(view: View) -> Finding:
    """Items with the same prompt, answers and votes as an earlier one."""
    seen: set[str] = set()
    hit = [item for item in view.items if (key := duplicate_key(item)) in seen or seen.add(key)]
    severity: Severity = "major" if len(hit) > MANY_DUPLICATES * len(view.items) else "minor" if hit else "ok"
    message = f"{len(hit)} of {len(view.items)} items repeat an earlier one exactly"
    return _finding("duplicate_items", severity, len(hit), len(view.items), message, _CLEANED, _ids(hit))


def duplicate_ids(view: View) -> Finding | None:
    """Different items under one id: later lists of ids would be ambiguous."""
    counts = Counter(item.id for item in view.items)
    hit = [name for name, n in counts.items() if n > 1]
    if not hit:
        return None
    message = f"{len(hit)} ids name more than one item"
    return _finding("duplicate_ids", "minor", len(hit), len(counts), message, "give every row its own id", hit)


def repeated_prompts(view: View) -> Finding | None:
    """Prompts asked in more than one item: not wrong, but they must not be split."""
    counts = Counter(map(prompt_key, view.items))
    repeated = {key for key, n in counts.items() if n > 1}
    if not repeated or all(item.prompt == "" for item in view.items):
        return None
    many = sum(counts[key] for key in repeated)
    message = f"{many} of {len(view.items)} items share a prompt, or the opening of a dialogue, with another"
    return _finding("repeated_prompts", "ok", many, len(view.items), message + "; splits keep them together")


def contradictory_pairs(view: View) -> Finding | None:
    """The same two answers ordered both ways, or one answer called good and bad."""
    if not view.pairs and not any(map(is_labelled, view.items)):
        return None
    found = contradictions(view.items)
    hit = [item for group in found for item in group]
    message = f"{len(found)} pairs or labels are stated both ways" + (f", by {len(hit)} items" if hit else "")
    remedy = "look at them and keep one side, or keep both: they pull against each other"
    return _finding("contradictions", "major" if hit else "ok", len(found), len(view.items), message, remedy, _ids(hit))


def cycles(view: View) -> Finding | None:
    """Prompts whose answers beat each other in a circle of three or more."""
    by_prompt = _edges(view.items)
    if not any(len(edges) > 2 for edges in by_prompt.values()):
        return None
    hit = [edges for edges in by_prompt.values() if len(edges) > 2 and _has_cycle(edges)]
    ids = [item.id for edges in hit for items in edges.values() for item in items]
    message = f"{len(hit)} of {len(by_prompt)} prompts order their answers in a circle"
    remedy = "rankings cannot be circular: check how the votes were joined"
    return _finding("cycles", "major" if hit else "ok", len(hit), len(by_prompt), message, remedy, ids)


def no_order(view: View) -> Finding | None:
    """Opinions that order nothing: ties, answers that are all bad, no votes."""
    voted = [item for item in view.items if item.votes and not is_labelled(item)]
    if not voted:
        return None
    ordered = {item.id for item, pair in view.pairs if pair.p != 0.5}
    hit = [item for item in voted if item.id not in ordered]
    severity: Severity = "major" if len(hit) == len(voted) else "ok"
    message = f"{len(hit)} of {len(voted)} items prefer no answer (ties, or all bad)"
    remedy = "there is nothing to learn an order from" if severity == "major" else ""
    return _finding("no_order", severity, len(hit), len(voted), message, remedy, _ids(hit))


def length_bias(view: View) -> Finding | None:
    """How often the longer answer is preferred, ties and equal lengths left out."""
    decided = []
    for item, pair in view.pairs:
        gap = _length(item, pair.i) - _length(item, pair.j)
        if pair.p != 0.5 and gap:
            decided.append(gap > 0)
    if not decided:
        return None
    rate, (low, high) = sum(decided) / len(decided), wilson(sum(decided), len(decided))
    severity: Severity = "ok"
    if low > LENGTH_BIAS_MINOR or high < 1 - LENGTH_BIAS_MINOR:
        severity = "major" if low > LENGTH_BIAS_MAJOR or high < 1 - LENGTH_BIAS_MAJOR else "minor"
    message = (
        f"the longer answer is preferred in {rate:.1%} of {len(decided)} pairs (95 % interval {low:.1%}-{high:.1%})"
    )
    remedy = "a model may learn length instead of quality: watch the lengths of its samples"
    found = _finding("length_bias", severity, sum(decided), len(decided), message, remedy)
    return replace(found, value=rate, low=low, high=high)


def label_balance(view: View) -> Finding | None:
    """Share of good labels in unpaired data."""
    stated = [label for item in view.items if is_labelled(item) for label in labels(item) if label is not None]
    if not stated:
        return None
    good, (low, high) = sum(stated), wilson(sum(stated), len(stated))
    share = min(good, len(stated) - good) / len(stated)
    severity: Severity = "major" if share == 0 else "minor" if share < LOW_CLASS_SHARE else "ok"
    message = f"{good} answers are good and {len(stated) - good} bad ({good / len(stated):.1%} good)"
    remedy = "KTO needs both kinds; weigh the rarer one up (desirable_weight, undesirable_weight)"
    found = _finding("label_balance", severity, good, len(stated), message, remedy)
    return replace(found, value=good / len(stated), low=low, high=high)


def agreement(view: View) -> Finding | None:
    """How often two votes on the same two answers (and axis) say the same, ties being an answer of their own."""
    same = total = 0
    hit: list[Item] = []
    for item in view.items:
        agreeing, pairs = _agreeing(item)
        same, total = same + agreeing, total + pairs
        hit += [item] if agreeing < pairs else []
    if not total:
        return None
    rate, (low, high) = same / total, wilson(same, total)
    message = f"two votes on the same answers agree in {rate:.1%} of {total} cases; {len(hit)} items are disputed"
    severity: Severity = "minor" if rate < LOW_AGREEMENT else "ok"
    found = _finding(
        "agreement", severity, same, total, message, "clarify the guideline, or ask more people", _ids(hit)
    )
    return replace(found, value=rate, low=low, high=high)


def score_mismatches(view: View) -> Finding | None:
    """Pairs whose stated scores say the opposite of the stated order."""
    scored = [(item, pair) for item, pair in view.pairs if pair.margin is not None]
    hit = [item for item, pair in scored if pair.p > 0.5 and (pair.margin or 0.0) < 0]
    if not scored:
        return None
    message = f"{len(hit)} of {len(scored)} scored pairs have chosen scored below rejected"
    remedy = "check which of score and order is right"
    return _finding("score_mismatches", "minor" if hit else "ok", len(hit), len(scored), message, remedy, _ids(hit))


def over_long(view: View) -> Finding:
    """Items of more characters than common context windows hold (16,000 characters are about 4,000 English tokens)."""
    hit = [item for item in view.items if _size(item) > LONG_CHARACTERS]
    message = f"{len(hit)} of {len(view.items)} items have more than {LONG_CHARACTERS:,} characters"
    remedy = "they may be cut or dropped: see how many with --model M"
    return _finding("over_long", "minor" if hit else "ok", len(hit), len(view.items), message, remedy, _ids(hit))


def empty_prompts(view: View) -> Finding | None:
    """Items without a prompt among others that have one."""
    hit = [item for item in view.items if not full_text(item.prompt).strip()]
    if not hit or len(hit) == len(view.items):
        return None
    message = f"{len(hit)} of {len(view.items)} items have an empty prompt"
    return _finding("empty_prompts", "minor", len(hit), len(view.items), message, "check these rows", _ids(hit))


def continued_answers(view: View) -> Finding | None:
    """Pairs in which one answer is the beginning of the other: they teach where to stop."""
    hit = []
    for item, pair in view.pairs:
        a, b = (answer_text(item.responses[k].turns).strip() for k in (pair.i, pair.j))
        if a != b and (a.startswith(b) or b.startswith(a)):
            hit.append(item)
    if not hit:
        return None
    message = f"in {len(hit)} of {len(view.pairs)} pairs one answer is the beginning of the other"
    return _finding("continued_answers", "ok", len(hit), len(view.pairs), message, "", _ids(hit))


def too_few(view: View) -> Finding | None:
    """Too few prompts to hold some out."""
    groups = len(set(map(prompt_key, view.items)))
    if groups > 1 or all(item.prompt == "" for item in view.items):
        return None
    message = "all items share one prompt: nothing can be held out for evaluation"
    return _finding("one_prompt", "minor", 1, len(view.items), message, "add prompts, or give --eval-data")


ALL: tuple[Callable[[View], Finding | None], ...] = (
    dropped_rows,
    identical_pairs,
    contradictory_pairs,
    cycles,
    duplicate_items,
    no_order,
    label_balance,
    length_bias,
    agreement,
    score_mismatches,
    over_long,
    empty_prompts,
    duplicate_ids,
    repeated_prompts,
    continued_answers,
    too_few,
)

_CLEANED = "training removes them and lists each one in losses.jsonl"


def contradictions(items: Iterable[Item]) -> list[list[Item]]:
    """Groups of items that state opposite orders of the same two answers, or opposite labels of one answer.

    Disagreement *within* an item (several annotators) is no contradiction: it is pooled into a probability.
    """
    items = list(items)
    found = []
    for edges in _edges(items).values():
        for (better, worse), told in edges.items():
            if repr(better) < repr(worse) and (worse, better) in edges:
                found.append(told + edges[worse, better])
    by_answer: dict[object, dict[bool, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        for response, label in zip(item.responses, labels(item) if is_labelled(item) else (), strict=False):
            if label is not None:
                by_answer[stripped(item.prompt), stripped(response.turns)][label].append(item)
    return found + [said[True] + said[False] for said in by_answer.values() if len(said) == 2]


_Edges = dict[tuple[object, object], list[Item]]


def _edges(items: Iterable[Item]) -> dict[object, _Edges]:
    """Per prompt, (better, worse) answers and the items that say so."""
    by_prompt: dict[object, _Edges] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if is_labelled(item):
            continue
        for pair in preferences(item):
            better, worse = (stripped(item.responses[k].turns) for k in (pair.i, pair.j))
            if pair.p != 0.5 and better != worse:
                by_prompt[stripped(item.prompt)][better, worse].append(item)
    return by_prompt


def _has_cycle(edges: Iterable[tuple[object, object]]) -> bool:
    """Whether a circle of three or more remains when pairs stated both ways are left out."""
    left = set(edges)
    left -= {(b, a) for a, b in left}
    while left:
        sources = {a for a, _ in left} - {b for _, b in left}
        if not sources:
            return True
        left = {(a, b) for a, b in left if a not in sources}
    return False


def _agreeing(item: Item) -> tuple[int, int]:
    """(agreeing pairs of votes, pairs of votes) over all pairs of answers of an item."""
    by_pair: dict[object, Counter[object]] = defaultdict(Counter)
    for vote in item.votes:
        if isinstance(vote, Comparison):
            vote = vote if vote.first < vote.second else vote.swap()
            by_pair[vote.first, vote.second, vote.axis][vote.outcome] += 1
    same = sum(n * (n - 1) // 2 for counts in by_pair.values() for n in counts.values())
    return same, sum(_choose_two(sum(counts.values())) for counts in by_pair.values())


def _choose_two(n: int) -> int:
    return n * (n - 1) // 2


def _length(item: Item, response: int) -> int:
    return len(answer_text(item.responses[response].turns))


def _size(item: Item) -> int:
    return len(full_text(item.prompt)) + max((len(full_text(r.turns)) for r in item.responses), default=0)


def _ids(items: Iterable[Item]) -> list[str]:
    return list(dict.fromkeys(item.id for item in items))


def _finding(
    code: str, severity: Severity, count: int, total: int, message: str, remedy: str = "", ids: Sequence[str] = ()
) -> Finding:
    """A finding; its remedy is only told when there is something to mend."""
    return Finding(code, severity, count, total, message, remedy if severity != "ok" else "", ids=list(ids)[:SHOWN_IDS])
