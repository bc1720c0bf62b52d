"""What is wrong, or odd, in a data set: counts, and findings with numbers, ids and remedies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from afzal.data import Dataset
from afzal.data.turns import answer_text, full_text
from afzal.quality import findings
from afzal.quality.findings import Finding, View
from afzal.quality.stats import quantile
from afzal.records import Comparison, Item, labels, preferences, prompt_key


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts and findings of a data set; ``dataclasses.asdict`` makes it JSON.

    Attributes:
        rows, kept: rows read, and those that gave an item; ``rows == kept + dropped rows``.
        pairs, ties, soft: pairs derived by :func:`afzal.records.preferences`, those of them with probability 1/2, and
            those neither certain nor tied.
        good, bad: labelled responses.
        characters: median, 95 % quantile and largest length of prompts and of responses.
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
    characters: dict[str, dict[str, int]]
    drops: dict[str, int]
    findings: list[Finding]

    @property
    def worst(self) -> Literal["ok", "minor", "major"]:
        """The severity of the worst finding."""
        found = {finding.severity for finding in self.findings}
        return "major" if "major" in found else "minor" if "minor" in found else "ok"


def audit(dataset: Dataset) -> Audit:
    """Look a data set over. Takes about a second per 20,000 pairs; needs no model and no tokenizer."""
    view = look(dataset)
    votes = [vote for item in dataset.items for vote in item.votes]
    stated = [labels(item) for item in dataset.items if findings.is_labelled(item)]
    return Audit(
        source=dataset.source,
        format=dataset.format,
        fingerprint=dataset.fingerprint,
        rows=dataset.rows,
        kept=dataset.kept,
        items=len(dataset.items),
        prompts=len({full_text(item.prompt) for item in dataset.items}),
        groups=len({prompt_key(item) for item in dataset.items}),
        responses_per_item={
            str(k): n for k, n in sorted(Counter(len(item.responses) for item in dataset.items).items())
        },
        pairs=len(view.pairs),
        ties=sum(pair.p == 0.5 for _, pair in view.pairs),
        both_bad=sum(isinstance(vote, Comparison) and vote.p_first is None for vote in votes),
        soft=sum(pair.p not in (0.5, 1.0) for _, pair in view.pairs),
        good=sum(label is True for row in stated for label in row),
        bad=sum(label is False for row in stated for label in row),
        annotators=len({vote.annotator for vote in votes if vote.annotator}),
        characters=_characters(dataset.items),
        drops=dataset.drop_counts,
        findings=[finding for look_for in findings.ALL if (finding := look_for(view)) is not None],
    )


def look(dataset: Dataset) -> View:
    """A data set with its pairs worked out once."""
    pairs = [(item, pair) for item in dataset.items for pair in preferences(item)]
    return View(dataset, pairs)


def _characters(items: list[Item]) -> dict[str, dict[str, int]]:
    lengths = {
        "prompt": sorted(len(full_text(item.prompt)) for item in items),
        "response": sorted(len(answer_text(r.turns)) for item in items for r in item.responses),
    }
    return {
        name: {"median": quantile(values, 0.5), "p95": quantile(values, 0.95), "max": quantile(values, 1.0)}
        for name, values in lengths.items()
    }
