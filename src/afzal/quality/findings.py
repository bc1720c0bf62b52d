"""One function per thing to look for. To add one: write ``(View) -> Finding | None`` and list it in ``ALL``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from afzal.data.turns import answer_text, full_text
from afzal.quality.clean import duplicate_key
from afzal.quality.view import Edges, Told, View, edges_of, tell
from afzal.records import Comparison, Item
from afzal.stats.intervals import clustered, share

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
        value, low, high: a rate and its 95 % interval over prompts, where the finding is one.
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
    hit = [(t.item, p) for t, p in view.pairs if t.answers[p.i] == t.answers[p.j]]
    raw = sum(item.responses[p.i].turns == item.responses[p.j].turns for item, p in hit)
    message = f"{len(hit)} of {len(view.pairs)} pairs have chosen == rejected ({raw} to the letter)"
    return _finding(
        "identical_pairs",
        "major" if hit else "ok",
        len(hit),
        len(view.pairs),
        message,
        _CLEANED,
        _ids(item for item, _ in hit),
    )


def duplicate_items(view: View) -> Finding:
    """Items with the same prompt, answers and votes as an earlier one."""
    seen: set[Hashable] = set()
    asked_again = [t.item for t in view.told if view.askings[t.prompt] > 1]  # only these can say the same
    hit = [item for item in asked_again if (key := duplicate_key(item)) in seen or seen.add(key)]
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
    many = sum(n for n in view.groups.values() if n > 1)
    if not many or all(item.prompt == "" for item in view.items):
        return None
    message = f"{many} of {len(view.items)} items share a prompt, or the opening of a dialogue, with another"
    return _finding("repeated_prompts", "ok", many, len(view.items), message + "; splits keep them together")


def contradictory_pairs(view: View) -> Finding | None:
    """The same two answers ordered both ways, or one answer called good and bad."""
    if not view.pairs and not any(t.labels for t in view.told):
        return None
    found = _contradictions(view.told, view.edges)
    hit = [item for group in found for item in group]
    message = f"{len(found)} pairs or labels are stated both ways" + (f", by {len(hit)} items" if hit else "")
    remedy = "look at them and keep one side, or keep both: they pull against each other"
    return _finding("contradictions", "major" if hit else "ok", len(found), len(view.items), message, remedy, _ids(hit))


def cycles(view: View) -> Finding | None:
    """Prompts whose answers beat each other in a circle of three or more."""
    long = [edges for edges in view.edges.values() if len(edges) > 2]
    if not long:
        return None
    hit = [edges for edges in long if _has_cycle(edges)]
    ids = [item.id for edges in hit for items in edges.values() for item in items]
    message = f"{len(hit)} of {len(view.edges)} prompts order their answers in a circle"
    remedy = "rankings cannot be circular: check how the votes were joined"
    return _finding("cycles", "major" if hit else "ok", len(hit), len(view.edges), message, remedy, ids)


def no_order(view: View) -> Finding | None:
    """Opinions that order nothing: ties, answers that are all bad, no votes."""
    voted = [t.item for t in view.told if t.item.votes and not t.labels]
    if not voted:
        return None
    ordered = {t.item.id for t, pair in view.pairs if pair.p != 0.5}
    hit = [item for item in voted if item.id not in ordered]
    severity: Severity = "major" if len(hit) == len(voted) else "ok"
    message = f"{len(hit)} of {len(voted)} items prefer no answer (ties, or all bad)"
    remedy = "there is nothing to learn an order from" if severity == "major" else ""
    return _finding("no_order", severity, len(hit), len(voted), message, remedy, _ids(hit))


def length_bias(view: View) -> Finding | None:
    """How often the longer answer is preferred, pairs by their weight, ties and equal lengths left out."""
    prompts: list[object] = []
    longer: list[float] = []
    weights: list[float] = []
    for t, pair in view.pairs:
        gap = t.lengths[pair.i] - t.lengths[pair.j]
        if pair.p != 0.5 and gap and pair.weight > 0:
            prompts.append(t.prompt)
            longer.append(float(gap > 0))
            weights.append(pair.weight)
    if not longer:
        return None
    known = share(clustered(prompts, longer, weights))
    rate, (low, high) = known.value, known.ends
    severity: Severity = "ok"
    if low > LENGTH_BIAS_MINOR or high < 1 - LENGTH_BIAS_MINOR:
        severity = "major" if low > LENGTH_BIAS_MAJOR or high < 1 - LENGTH_BIAS_MAJOR else "minor"
    message = (
        f"the longer answer is preferred in {rate:.1%} of {len(longer)} pairs (95 % interval {low:.1%}-{high:.1%})"
    )
    remedy = "a model may learn length instead of quality: watch the lengths of its samples"
    found = _finding("length_bias", severity, int(sum(longer)), len(longer), message, remedy)
    return replace(found, value=rate, low=low, high=high)


def label_balance(view: View) -> Finding | None:
    """Share of good labels in unpaired data."""
    labelled = [(t.prompt, label) for t in view.told for label in t.labels if label is not None]
    if not labelled:
        return None
    prompts, stated = zip(*labelled, strict=True)
    good, (low, high) = sum(stated), share(clustered(prompts, stated)).ends
    rarer = min(good, len(stated) - good) / len(stated)
    severity: Severity = "major" if rarer == 0 else "minor" if rarer < LOW_CLASS_SHARE else "ok"
    message = f"{good} answers are good and {len(stated) - good} bad ({good / len(stated):.1%} good)"
    remedy = "KTO needs both kinds; weigh the rarer one up (desirable_weight, undesirable_weight)"
    found = _finding("label_balance", severity, good, len(stated), message, remedy)
    return replace(found, value=good / len(stated), low=low, high=high)


def agreement(view: View) -> Finding | None:
    """How often two votes on the same two answers (and axis) say the same, ties being an answer of their own."""
    prompts: list[object] = []
    agreed: list[float] = []
    hit: list[Item] = []
    for t in view.told:
        if len(t.item.votes) < 2:
            continue
        agreeing, pairs = _agreeing(t.item)
        prompts += [t.prompt] * pairs
        agreed += [1.0] * agreeing + [0.0] * (pairs - agreeing)
        hit += [t.item] if agreeing < pairs else []
    if not agreed:
        return None
    known, same, total = share(clustered(prompts, agreed)), int(sum(agreed)), len(agreed)
    rate, (low, high) = known.value, known.ends
    message = f"two votes on the same answers agree in {rate:.1%} of {total} cases; {len(hit)} items are disputed"
    severity: Severity = "minor" if rate < LOW_AGREEMENT else "ok"
    found = _finding(
        "agreement", severity, same, total, message, "clarify the guideline, or ask more people", _ids(hit)
    )
    return replace(found, value=rate, low=low, high=high)


def score_mismatches(view: View) -> Finding | None:
    """Pairs whose stated scores say the opposite of the stated order."""
    scored = [(t.item, pair) for t, pair in view.pairs if pair.margin is not None]
    hit = [item for item, pair in scored if pair.p > 0.5 and (pair.margin or 0.0) < 0]
    if not scored:
        return None
    message = f"{len(hit)} of {len(scored)} scored pairs have chosen scored below rejected"
    remedy = "check which of score and order is right"
    return _finding("score_mismatches", "minor" if hit else "ok", len(hit), len(scored), message, remedy, _ids(hit))


def over_long(view: View) -> Finding:
    """Items of more characters than common context windows hold (16,000 characters are about 4,000 English tokens)."""
    hit = [t.item for t in view.told if _size(t) > LONG_CHARACTERS]
    message = f"{len(hit)} of {len(view.items)} items have more than {LONG_CHARACTERS:,} characters"
    remedy = "they may be cut or dropped: see how many with --model M"
    return _finding("over_long", "minor" if hit else "ok", len(hit), len(view.items), message, remedy, _ids(hit))


def empty_prompts(view: View) -> Finding | None:
    """Items without a prompt among others that have one."""
    hit = [t.item for t in view.told if not t.asked.strip()]
    if not hit or len(hit) == len(view.items):
        return None
    message = f"{len(hit)} of {len(view.items)} items have an empty prompt"
    return _finding("empty_prompts", "minor", len(hit), len(view.items), message, "check these rows", _ids(hit))


def continued_answers(view: View) -> Finding | None:
    """Pairs in which one answer is the beginning of the other: they teach where to stop."""
    hit = []
    for t, pair in view.pairs:
        a, b = _words(t, pair.i), _words(t, pair.j)
        if a != b and (a.startswith(b) or b.startswith(a)):
            hit.append(t.item)
    if not hit:
        return None
    message = f"in {len(hit)} of {len(view.pairs)} pairs one answer is the beginning of the other"
    return _finding("continued_answers", "ok", len(hit), len(view.pairs), message, "", _ids(hit))


def too_few(view: View) -> Finding | None:
    """Too few prompts to hold some out."""
    if len(view.groups) > 1 or all(item.prompt == "" for item in view.items):
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
    told = [tell(item) for item in items]
    return _contradictions(told, edges_of(told))


def _contradictions(told: Iterable[Told], by_prompt: Mapping[object, Edges]) -> list[list[Item]]:
    found = []
    for edges in by_prompt.values():
        for (better, worse), items in edges.items():
            if (worse, better) in edges and repr(better) < repr(worse):
                found.append(items + edges[worse, better])
    by_answer: dict[object, dict[bool, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for t in told:
        for answer, label in zip(t.answers, t.labels, strict=False):
            if label is not None:
                by_answer[t.prompt, answer][label].append(t.item)
    return found + [said[True] + said[False] for said in by_answer.values() if len(said) == 2]


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


def _words(told: Told, response: int) -> str:
    """An answer's words without white space at the ends."""
    said = told.answers[response]
    return said if isinstance(said, str) else answer_text(told.item.responses[response].turns).strip()


def _size(told: Told) -> int:
    """Characters of the prompt and of the longest response, whoever said them."""
    if isinstance(told.item.prompt, str):
        return len(told.asked) + max(told.lengths, default=0)
    return len(told.asked) + max((len(full_text(r.turns)) for r in told.item.responses), default=0)


def _ids(items: Iterable[Item]) -> list[str]:
    return list(dict.fromkeys(item.id for item in items))


def _finding(
    code: str, severity: Severity, count: int, total: int, message: str, remedy: str = "", ids: Sequence[str] = ()
) -> Finding:
    """A finding; its remedy is only told when there is something to mend."""
    return Finding(code, severity, count, total, message, remedy if severity != "ok" else "", ids=list(ids)[:SHOWN_IDS])
