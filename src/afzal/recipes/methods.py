"""What is particular to each method: which trees it trains on, and what its objective is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.config import KTOConfig, ReferenceConfig, TrainConfig
from afzal.records import Item
from afzal.tokens import Loss
from afzal.tokens.tree import Tree, only_branch

Trees = tuple[list[Tree], list[Loss]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``select`` turns encoded items (trees, and in the same order the items they were made of) into training trees and
    says what it left out; ``parameters`` reads the config."""

    objective: str
    select: Callable[[Sequence[Tree], Sequence[Item]], Trees]
    parameters: Callable[[TrainConfig], Mapping[str, Any]]


def best_responses(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """SFT: the response that is never the worse one of a decided pair; all responses where there are no opinions.

    An opinion that orders nothing (both bad, or of weight 0) is one all the same: its responses are no examples.
    """
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        worse = {q.j for q in t.preferences if q.p > 0.5} | {q.i for q in t.preferences if q.p < 0.5}
        good = [k for k in range(len(t.branches)) if not item.votes or _is_good(t, k, worse)]
        found = [only_branch(t, k) for k in good]
        kept += found
        if not found:
            lost.append(_loss(item, "no_good_response", "no response wins or is labelled good"))
    return kept, lost


def compared(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """DPO and IPO: items with at least one weighted pair, without branches that no pair names."""
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        pairs = tuple(q for q in t.preferences if q.weight > 0)
        if not pairs:
            lost.append(_loss(item, "no_pair", "no comparison, or only of weight 0"))
            continue
        used = sorted({q.i for q in pairs} | {q.j for q in pairs})
        at = {k: n for n, k in enumerate(used)}
        moved = tuple(replace(q, i=at[q.i], j=at[q.j]) for q in pairs)
        labels = tuple(t.labels[k] for k in used) if t.labels else ()
        kept.append(replace(t, branches=tuple(t.branches[k] for k in used), preferences=moved, labels=labels))
    return kept, lost


def labelled(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """KTO: every labelled response on its own, so that good and bad ones mix freely when shuffled."""
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        found = [only_branch(t, k) for k, label in enumerate(t.labels) if label is not None]
        kept += found
        if not found:
            lost.append(_loss(item, "no_label", "no response is labelled good or bad"))
    return kept, lost


def _is_good(t: Tree, branch: int, worse: set[int]) -> bool:
    labelled_bad = bool(t.labels) and t.labels[branch] is False
    labelled_good = bool(t.labels) and t.labels[branch] is True
    won = any((q.i == branch and q.p > 0.5) or (q.j == branch and q.p < 0.5) for q in t.preferences)
    return branch not in worse and not labelled_bad and (labelled_good or won)


def _loss(item: Item, reason: str, detail: str) -> Loss:
    return Loss(item.id, item.where, reason, detail)


def _beta(config: TrainConfig) -> dict[str, Any]:
    return {"beta": config.beta} if isinstance(config, ReferenceConfig) else {}


def _kto(config: TrainConfig) -> dict[str, Any]:
    weights = ("desirable_weight", "undesirable_weight")
    return _beta(config) | ({w: getattr(config, w) for w in weights} if isinstance(config, KTOConfig) else {})


RECIPES: dict[str, Recipe] = {
    "sft": Recipe("sft", best_responses, lambda _: {}),
    "dpo": Recipe("dpo", compared, _beta),
    "ipo": Recipe("ipo", compared, _beta),
    "kto": Recipe("kto", labelled, _kto),
}
