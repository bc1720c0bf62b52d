"""Leaderboards of judges from verdicts on items of known truth: accuracy, and consistency over both orders.

Shapes: N items, J judges. Outcomes are coded as in :mod:`afzal.stats.judging`: 1 the first answer, 2 the second, 0 a
tie, -1 no verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.figures import finite, interval, leader
from afzal.judge.verdicts import CODES, Verdict, Verdicts
from afzal.stats import agreement, judging
from afzal.stats.intervals import Interval, clustered, share


@dataclass(frozen=True, slots=True)
class OrderConsistency:
    """A judge's two games of the items that it saw in both orders; shares are of all these items unless stated.

    Attributes:
        first_order, second_order: accuracy in each order; a missing verdict is wrong.
        both_right: right in both.
        consistent: the same verdict in both.
        consistent_of_two: the same verdict in both, of the items with two verdicts.
        right_where_consistent: accuracy on the consistent items.
        right_by_halves: right in both; items with two different verdicts count half.
        none_as_label: the same label in both, "no verdict" being a label too, and its Cohen's kappa, as published by
            LLMBar.
    """

    orders: judging.Orders
    first_order: float
    second_order: float
    both_right: float
    consistent: float
    consistent_of_two: float
    right_where_consistent: float
    right_by_halves: float
    none_as_label: tuple[float, float]


@dataclass(frozen=True, slots=True)
class JudgeLine:
    """One judge: the share of its games that name the truth (a missing verdict is wrong), its rank with an interval
    over prompts, and its two games.

    ``consistency`` is None if no item was judged in both orders. ``categories`` holds number of items, accuracy and
    two games per category, if the file has several. ``lead`` is the first judge's lead over this one on the same
    prompts, None for the first itself.
    """

    name: str
    accuracy: Interval
    rank: int
    best_rank: int
    worst_rank: int
    games: int
    no_verdict: int
    consistency: OrderConsistency | None
    categories: Mapping[str, tuple[int, float, OrderConsistency | None]]
    lead: Interval | None = None


@dataclass(frozen=True, slots=True)
class JudgeBoard:
    """Judges by accuracy against known truth; ``separable`` of ``pairs`` paired differences exclude 0."""

    lines: tuple[JudgeLine, ...]
    items: int
    separable: int
    pairs: int


def rank_judges(verdicts: Verdicts, *, resamples: int = 2000, seed: int = 0) -> JudgeBoard:
    """A leaderboard of judges, with each two of them compared on the same items.

    Raises:
        AfzalError: the file states no truth.
    """
    if not verdicts.gold:
        raise AfzalError("a leaderboard of judges needs the truth of each item, and the file states none")
    items = sorted(verdicts.gold)
    place = {item: k for k, item in enumerate(items)}
    truth = np.array([CODES[verdicts.gold[item]] for item in items])
    games: dict[str, list[Verdict]] = defaultdict(list)
    prompts, categories = list(items), [""] * len(items)
    for v in verdicts.verdicts:
        if v.item in place:
            games[v.judge].append(v)
            prompts[place[v.item]], categories[place[v.item]] = v.prompt, v.category
    names = list(games)
    table = np.stack([_item_accuracy(games[name], place, truth) for name in names], 1)
    means = judging.column_means(table, prompts, resamples=resamples, seed=seed)
    places, best, worst = _ranks(means)
    category_names = sorted(set(categories)) if len(set(categories)) > 1 else []
    lines, order = [], np.argsort(-means.values, kind="stable").tolist()
    for column in order:
        judge_verdicts = games[names[column]]
        both = _outcomes_by_order(judge_verdicts, place)
        by_category = {}
        for category in category_names:
            in_category = np.array([c == category for c in categories])
            by_category[category] = (
                int(in_category.sum()),
                float(np.nanmean(table[in_category, column])),
                order_consistency(both[in_category], truth[in_category], list(compress(prompts, in_category))),
            )
        missing = sum(v.outcome == "none" for v in judge_verdicts)
        ranks = int(places[column]), int(best[column]), int(worst[column])
        lead = means.difference(order[0], column) if lines else None
        accuracy = _accuracy(judge_verdicts, place, truth, prompts)
        lines.append(
            JudgeLine(
                names[column],
                accuracy,
                *ranks,
                len(judge_verdicts),
                missing,
                order_consistency(both, truth, prompts),
                by_category,
                lead,
            )
        )
    n = len(names)
    return JudgeBoard(tuple(lines), len(items), means.separable(), n * (n - 1) // 2)


def _hits(verdicts: Sequence[Verdict], place: Mapping[str, int], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each game of a judge, its item's number and whether it names the truth."""
    item_numbers = np.array([place[v.item] for v in verdicts])
    return item_numbers, np.array([CODES[v.outcome] for v in verdicts]) == truth[item_numbers]


def _item_accuracy(verdicts: Sequence[Verdict], place: Mapping[str, int], truth: np.ndarray) -> np.ndarray:
    """``[N]`` the share of a judge's games on each item that name the truth; NaN without games."""
    item_numbers, hits = _hits(verdicts, place, truth)
    n_games = np.bincount(item_numbers, minlength=len(place))
    return np.where(n_games > 0, np.bincount(item_numbers, hits, len(place)) / np.maximum(n_games, 1), np.nan)


def _accuracy(
    verdicts: Sequence[Verdict], place: Mapping[str, int], truth: np.ndarray, prompts: Sequence[Hashable]
) -> Interval:
    """A judge's accuracy: the share of games that name the truth, with equal weight for each item."""
    item_numbers, hits = _hits(verdicts, place, truth)
    n_games = np.bincount(item_numbers, minlength=len(place))
    return share(
        clustered(
            [prompts[k] for k in item_numbers.tolist()],
            hits.astype(float).tolist(),
            (1 / n_games[item_numbers]).tolist(),
        )
    )


def _ranks(means: judging.Means) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[J]`` each: the rank (1 is best), and its 2.5% and 97.5% quantiles over the resamples. Tied judges share a
    rank; in a resample they count as the best of them for the lower end and as the worst for the upper."""
    from scipy.stats import rankdata

    drawn = -np.nan_to_num(means.samples, nan=-np.inf)
    ranks = rankdata(-means.values, "min")
    best = np.quantile(rankdata(drawn, "min", axis=1), 0.025, axis=0)
    return ranks, best, np.quantile(rankdata(drawn, "max", axis=1), 0.975, axis=0)


def _outcomes_by_order(verdicts: Sequence[Verdict], place: Mapping[str, int]) -> np.ndarray:
    """``[N, 2]`` the outcome of each item in original and in swapped order; -2 if that was not played."""
    table = np.full((len(place), 2), -2)
    for v in reversed(verdicts):  # the first of several games in one order counts
        if v.shown_first is not None:
            table[place[v.item], v.shown_first] = CODES[v.outcome]
    return table


def order_consistency(
    table: np.ndarray, truth: np.ndarray, prompts: Sequence[Hashable] = ()
) -> OrderConsistency | None:
    """The figures of the items ``[N, 2]`` that a judge saw in both orders; None without any.

    Args:
        prompts: ``[N]`` the prompt of each item; empty if all differ.
    """
    both_played = (table > -2).all(1)
    if not both_played.any():
        return None
    first, second, truth = table[both_played, 0], table[both_played, 1], truth[both_played]
    decided = (first >= 0) & (second >= 0)
    consistent = decided & (first == second)
    right = consistent & (first == truth)
    return OrderConsistency(
        orders=judging.both_orders(first, second, list(compress(prompts, both_played))),
        first_order=float((first == truth).mean()),
        second_order=float((second == truth).mean()),
        both_right=float(((first == truth) & (second == truth)).mean()),
        consistent=float(consistent.mean()),
        consistent_of_two=float(consistent.sum() / decided.sum()) if decided.any() else float("nan"),
        right_where_consistent=float(right.sum() / consistent.sum()) if consistent.any() else float("nan"),
        right_by_halves=float((right + 0.5 * (decided & ~consistent)).mean()),
        none_as_label=(float((first == second).mean()), agreement.cohen(first + 1, second + 1)),
    )


def judges_as_plain(board: JudgeBoard, source: str) -> dict[str, Any]:
    """A leaderboard of judges as plain values."""
    lines, categories = [], []
    for line in board.lines:
        ranks = {"rank": line.rank, "best_rank": line.best_rank, "worst_rank": line.worst_rank}
        figures: dict[str, Any] = {**ranks, "games": line.games, "no_verdict": line.no_verdict}
        lines.append(
            {"name": line.name, **interval(line.accuracy), **figures, **_consistency_figures(line.consistency)}
        )
        for category, (items, right, consistency) in line.categories.items():
            known = {"judge": line.name, "category": category, "items": items, "accuracy": right}
            none = {} if consistency is None else {"no_verdict": consistency.orders.no_verdict}
            categories.append(known | none | _consistency_figures(consistency))
    gaps = [
        {"first": board.lines[0].name, "second": line.name, **interval(line.lead)}
        for line in board.lines
        if line.lead is not None
    ]
    separable = f"{board.separable} of {board.pairs} pairs of judges can be told apart on the same items."
    findings = [f"{leader(gaps)} {separable}" if gaps else "There is only one judge, so nothing to compare."]
    biased = [
        x
        for x in board.lines
        if x.consistency and (p := x.consistency.orders.slot_p) is not None and p < 0.05 / len(lines)
    ]
    if biased:
        findings.append(
            f"{len(biased)} of {len(lines)} judges prefer a slot regardless of the answer (exact test, p below "
            "0.05 divided by the number of judges)."
        )
    if missing := sum(x.no_verdict for x in board.lines):
        findings.append(f"{missing} games have no verdict; none of them counts as right.")
    facts = [("judges", f"{len(lines):,}"), ("items of known truth", f"{board.items:,}")]
    header = {"title": "Leaderboard of judges", "subtitle": source, "unit": "accuracy", "rule": None}
    body = {**header, "findings": findings, "facts": facts, "lines": [_shown(x) for x in lines], "differences": gaps}
    body |= {"judges": lines, "separable": board.separable, "pairs": board.pairs}
    return body | ({"categories": categories, "tables": [_by_category(categories)]} if categories else {})


_SHOWN = ("rank", "best_rank", "worst_rank", "no_verdict", "both_right", "consistent", "slot_bias", "slot_p")


def _shown(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a judge that the table shows."""
    return {key: line[key] for key in ("name", "value", "low", "high", *_SHOWN) if key in line}


def _consistency_figures(consistency: OrderConsistency | None) -> dict[str, Any]:
    if consistency is None:
        return {}
    orders = asdict(consistency.orders)
    keys = ("contradictions", "first_slot", "slot_bias", "slot_p", "always_first", "always_second", "kappa")
    shares = {
        key: finite(value) for key, value in asdict(consistency).items() if key not in ("orders", "none_as_label")
    }
    labels = dict(zip(("consistent", "kappa"), map(finite, consistency.none_as_label), strict=True))
    return {**shares, **{key: finite(orders[key]) for key in keys}, "none_as_label": labels}


def _by_category(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    category_names = list(dict.fromkeys(line["category"] for line in lines))
    cells = {(line["judge"], line["category"]): f"{line['accuracy']:.3f}" for line in lines}
    names = list(dict.fromkeys(line["judge"] for line in lines))
    rows = [[name, *(cells.get((name, category), "") for category in category_names)] for name in names]
    return {"title": "Accuracy by category", "words": "", "columns": ["judge", *category_names], "rows": rows}
