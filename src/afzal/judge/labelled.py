"""Verdicts on rows of known truth, whoever wrote the answers: what ``afzal judge`` writes for labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence

from afzal import data
from afzal.errors import AfzalError
from afzal.judge.verdicts import Outcome, Verdict, Verdicts, outcome_of
from afzal.records import Comparison, Item, comparisons, prompt_key


def read_labelled(sources: Sequence[str]) -> Verdicts:
    """Verdicts by judge or annotator, and the truth of each pair: its ``gold``, or else its unsigned label.

    Raises:
        AfzalError: a file cannot be read, or no pair has both a truth and a verdict.
    """
    verdicts: list[Verdict] = []
    gold: dict[str, Outcome] = {}
    rows, formats = 0, []
    for source in sources:
        dataset = data.read(source)
        rows += dataset.rows
        formats.append(dataset.format)
        for item in dataset.items:
            truths = truths_of(item)
            gold |= truths
            verdicts += [v for vote in comparisons(item.votes) if (v := _verdict(item, vote)) and v.item in truths]
    if not verdicts:
        raise AfzalError(
            f"{', '.join(sources)} holds no verdicts on pairs of known truth",
            why="the truth of a pair is its gold or a label without an annotator; a verdict names its judge",
            remedy="rows.jsonl of afzal judge on labelled pairs, or a file with a label and judges, such as LLMBar's",
        )
    judged_items = {v.item for v in verdicts}
    return Verdicts(verdicts, {item: truth for item, truth in gold.items() if item in judged_items}, formats[0], rows)


def truths_of(item: Item) -> dict[str, Outcome]:
    """The true outcome of every pair of responses with exactly one stated truth."""
    truths = list(comparisons(item.gold)) or [vote for vote in comparisons(item.votes) if vote.annotator is None]
    by_pair: dict[str, set[Outcome]] = {}
    for vote in truths:
        ordered = _by_number(vote)
        by_pair.setdefault(pair_name(item, ordered.first, ordered.second), set()).add(outcome_of(ordered))
    return {pair: outcomes.pop() for pair, outcomes in by_pair.items() if len(outcomes) == 1}


def _verdict(item: Item, vote: Comparison) -> Verdict | None:
    if vote.annotator is None:
        return None
    ordered = _by_number(vote)
    first_shown = None if ordered.shown_first is None else int(ordered.shown_first == ordered.second)
    names = f"response {ordered.first}", f"response {ordered.second}"
    pair, p = pair_name(item, ordered.first, ordered.second), ordered.probability
    return Verdict(prompt_key(item), pair, *names, outcome_of(ordered), vote.annotator, first_shown, p)


def pair_name(item: Item, first: int, second: int) -> str:
    """The key of a pair of responses of an item, ``first < second``."""
    return f"{prompt_key(item)}\0{item.id}\0{first}\0{second}"


def _by_number(vote: Comparison) -> Comparison:
    """The same opinion with the lower-numbered response first."""
    return vote if vote.first < vote.second else vote.swap()
