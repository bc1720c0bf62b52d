"""Several models against one opponent, by judges and by people: win rates and agreement.

The table of Rafailov et al. 2023 (Table 2), with an interval for each figure: one column per model, all compared with
the same opponent. Win rates count a tie as half a win; a pair without a verdict counts for neither side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.judge import annotators, validation
from afzal.judge.figures import figure, points
from afzal.judge.games import Pair
from afzal.judge.labels import Labels
from afzal.judge.summary import share_of, two_models
from afzal.judge.summary_text import percent, side
from afzal.records import Item, prompt_key

PEOPLE = "people"

_CERTAIN = 0.01  # slot bias is reported below this p-value


@dataclass(frozen=True, slots=True)
class Column:
    """One model against the opponent: each judge's summary (``summary.json``), and the figures of people alone, None
    without their votes on these pairs."""

    name: str
    summaries: Sequence[Mapping[str, Any]]
    people: Mapping[str, Any] | None


def people_figures(
    items: Sequence[Item], pairs: Sequence[Pair], labels: Labels | None, *, resamples: int = 1000
) -> dict[str, Any] | None:
    """Figures of people alone on two models: labels, the first model's win rate over the pairs that they ordered, and
    the probability that two labels of one pair agree; None without labels or without two models."""
    sides = two_models(items, pairs)
    if labels is None or sides is None:
        return None
    won = validation.points_of_people(labels)
    won = np.where(sides[2] > 0, won, 1 - won)
    rate = share_of(won, np.isfinite(won), [prompt_key(items[p.item]) for p in pairs])
    if rate is None:
        return None
    agreed = annotators.overall_agreement(labels, resamples=resamples)
    return {
        "people": int((labels.table >= 0).any(0).sum()),
        "labels": int((labels.table >= 0).sum()),
        "win_rate": rate,
        "agreement": None if agreed is None else figure(agreed.raw),
    }


def table(columns: Sequence[Column], opponent: str) -> dict[str, Any]:
    """The table as plain values, for :func:`afzal.report.write_board`.

    ``lines`` has a win rate per model and judge (people included), ``agreement`` how often two of them agree on a pair,
    and ``tables`` all of it side by side.
    """
    judges = [summary["judge"] for summary in columns[0].summaries]
    return {
        "title": f"Win rates against {opponent}",
        "subtitle": ", ".join(c.name for c in columns),
        "unit": f"win rate against {opponent}",
        "rule": 0.5,
        "findings": _findings(columns, judges, opponent),
        "facts": [("against", opponent), ("judges", ", ".join(judges))],
        "lines": [line for c in columns for line in _lines(c)],
        "differences": [],
        "agreement": [line for c in columns for line in _agreement(c)],
        "tables": [_side_by_side(columns, judges)],
    }


def lines(board: Mapping[str, Any]) -> list[str]:
    """The table as lines of text with aligned columns."""
    side = board["tables"][0]
    rows = [side["columns"], *side["rows"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"{board['title']}: {board['subtitle']}", *cells, *board["findings"], side["words"]]


def _lines(column: Column) -> list[dict[str, Any]]:
    rates = [(summary["judge"], _rate(summary), summary["pairs"]) for summary in column.summaries]
    if column.people is not None:
        rates.append((PEOPLE, column.people["win_rate"], column.people["win_rate"]["pairs"]))
    return [
        {"name": f"{column.name} by {name}", "model": column.name, "by": name, **_ends(rate), "pairs": pairs}
        for name, rate, pairs in rates
    ]


def _rate(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return summary.get("models", {}).get("win_rate")


def _ends(known: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: None if known is None else known[key] for key in ("value", "low", "high")}


def _agreement(column: Column) -> list[dict[str, Any]]:
    lines = []
    for summary in column.summaries:
        if (beside_people := summary.get("people")) is not None:
            agreed = beside_people["agreement"]
            lines.append({"model": column.name, "first": summary["judge"], "second": PEOPLE, **_ends(agreed)})
            if "minus_ceiling" in beside_people:
                lines[-1]["minus_ceiling"] = _ends(beside_people["minus_ceiling"])
    if column.people is not None and column.people["agreement"] is not None:
        lines.append({"model": column.name, "first": PEOPLE, "second": PEOPLE, **_ends(column.people["agreement"])})
    return lines


def _side_by_side(columns: Sequence[Column], judges: Sequence[str]) -> dict[str, Any]:
    """The models side by side, one row per figure."""
    has_people = any(c.people is not None for c in columns)
    rows = [["pairs of answers", *(f"{c.summaries[0]['pairs']:,}" for c in columns)]]
    rows += (
        [["labels of people", *(_cell(c.people, lambda p: f"{p['labels']:,}") for c in columns)]] if has_people else []
    )
    for k, name in enumerate(judges):
        rows.append([f"win rate by {name}", *(_cell(_rate(c.summaries[k]), percent) for c in columns)])
    for k, name in enumerate(judges):
        rows += _trust(name, [c.summaries[k] for c in columns])
    if has_people:
        rows.append(["win rate by people", *(_cell(c.people, lambda p: percent(p["win_rate"])) for c in columns)])
        for k, name in enumerate(judges):
            with_people = [c.summaries[k].get("people") for c in columns]
            rows.append(
                [f"{name} agrees with a person", *(_cell(s, lambda p: percent(p["agreement"])) for s in with_people)]
            )
            gaps = [None if s is None else s.get("minus_ceiling") for s in with_people]
            rows += [[f"{name} less a person", *(_cell(gap, points) for gap in gaps)]] if any(gaps) else []
        agreed = [None if c.people is None else c.people["agreement"] for c in columns]
        rows.append(["a person agrees with another", *(_cell(known, percent) for known in agreed)])
    words = "Win rates count a tie as half a win. Agreement is the share of equal labels, a tie being a label."
    if has_people:
        words += (
            " A judge less a person: its agreement with the most frequent label of the other people, less what one of"
            " them reaches on the same pairs, in points."
        )
    return {"title": "Side by side", "words": words, "columns": ["", *(c.name for c in columns)], "rows": rows}


def _trust(name: str, summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows on a judge's reliability: games without a verdict, and how often both orders agree."""
    share = lambda value: f"{100 * value:.1f}%"  # noqa: E731
    rows = []
    if any(summary["no_verdict"] for summary in summaries):
        rows.append(
            [f"games without a verdict by {name}", *(share(summary["no_verdict_share"]) for summary in summaries)]
        )
    if any("orders" in summary for summary in summaries):
        agree = [summary.get("orders", {}).get("consistent") for summary in summaries]
        rows.append([f"both orders agree by {name}", *(_cell(known, share) for known in agree)])
    return rows


def _cell(known: Any, render: Callable[[Any], str]) -> str:
    return "-" if known is None else render(known)


def _findings(columns: Sequence[Column], judges: Sequence[str], opponent: str) -> list[str]:
    findings = []
    for c in columns:
        rate = c.people["win_rate"] if c.people is not None else _rate(c.summaries[0])
        source = PEOPLE if c.people is not None else judges[0]
        if rate is not None:
            verdict = "" if side(rate) else ", not told apart"
            findings.append(f"{c.name} against {opponent}, by {source}: {percent(rate)}{verdict}.")
    for k, name in enumerate(judges):
        games = [(c.name, orders) for c in columns if (orders := c.summaries[k].get("orders")) is not None]
        leaning = [model for model, orders in games if orders["slot_p"] is not None and orders["slot_p"] < _CERTAIN]
        findings += [f"{name} prefers a slot regardless of the answer, on {', '.join(leaning)}."] if leaning else []
        comparisons = [
            (c.name, rate, c.people["win_rate"])
            for c in columns
            if c.people is not None and (rate := _rate(c.summaries[k])) is not None
        ]
        wrong = [name for name, rate, by_people in comparisons if _do_not_overlap(rate, by_people)]
        if wrong:
            findings.append(
                f"{name} and people disagree on {', '.join(wrong)}: the intervals of their win rates do not overlap."
            )
        if len(comparisons) > 1:
            ranked = [c for c, *_ in sorted(comparisons, key=lambda known: -known[1]["value"])]
            same_order = ranked == [c for c, *_ in sorted(comparisons, key=lambda known: -known[2]["value"])]
            words = "as people do" if same_order else "differently from people"
            findings.append(f"{name} ranks the models {words}: {', '.join(ranked)}.")
    missing = [c.name for c in columns if c.people is None]
    if missing and len(missing) < len(columns):
        findings.append(f"There are no votes of people on {', '.join(missing)}.")
    return findings


def _do_not_overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if first["low"] is None or second["low"] is None:
        return False
    return first["low"] > second["high"] or second["low"] > first["high"]
