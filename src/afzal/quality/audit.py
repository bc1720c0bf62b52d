"""What is wrong, or odd, in a data set: counts, and findings with numbers, ids and remedies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from afzal.data import Dataset
from afzal.quality import findings
from afzal.quality.findings import Finding
from afzal.quality.view import View, look
from afzal.records import Comparison


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
    """Look a data set over; needs no model and no tokenizer."""
    view = look(dataset)
    votes = [vote for item in dataset.items for vote in item.votes]
    stated = [label for told in view.told for label in told.labels]
    return Audit(
        source=dataset.source,
        format=dataset.format,
        fingerprint=dataset.fingerprint,
        rows=dataset.rows,
        kept=dataset.kept,
        items=len(dataset.items),
        prompts=len({told.asked for told in view.told}),
        groups=len(view.groups),
        responses_per_item={
            str(k): n for k, n in sorted(Counter(len(item.responses) for item in dataset.items).items())
        },
        pairs=len(view.pairs),
        ties=sum(pair.p == 0.5 for _, pair in view.pairs),
        both_bad=sum(isinstance(vote, Comparison) and vote.p_first is None for vote in votes),
        soft=sum(pair.p not in (0.5, 1.0) for _, pair in view.pairs),
        good=stated.count(True),
        bad=stated.count(False),
        annotators=len({vote.annotator for vote in votes if vote.annotator}),
        characters=_characters(view),
        drops=dataset.drop_counts,
        findings=[finding for look_for in findings.ALL if (finding := look_for(view)) is not None],
    )


def _characters(view: View) -> dict[str, dict[str, int]]:
    lengths = {
        "prompt": sorted(len(told.asked) for told in view.told),
        "response": sorted(length for told in view.told for length in told.lengths),
    }
    return {
        name: {"median": quantile(values, 0.5), "p95": quantile(values, 0.95), "max": quantile(values, 1.0)}
        for name, values in lengths.items()
    }


def quantile(ordered: Sequence[int], q: float) -> int:
    """The smallest of the sorted values that at least a share ``q`` does not exceed; 0 when there are none."""
    if not ordered:
        return 0
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]
