"""The card of a judge: its facts, the figures that show how far to trust it, and pairs to read first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afzal.judge import controls
from afzal.judge.aggregate import aggregate
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.labels import CLASSES, Labels
from afzal.judge.summary import flat, outcome_codes
from afzal.judge.summary_text import percent, verdict
from afzal.text import sign

WORST = 20
_LONGEST = 2000  # characters shown of a text
_FIGURES = {
    "orders.consistent": "both orders agree",
    "orders.first_slot": "share of winners shown first",
    "orders.slot_bias": "slot bias towards the first",
    "no_verdict_share": "games without a verdict",
    "first_wins": "the first answer wins",
    "longer_wins": "the longer answer wins",
    "models.win_rate": "win rate of the first model",
    "models.length_controlled": "win rate at equal lengths",
    "models.with_people.corrected": "win rate corrected by people's labels",
    "models.with_people.people_alone": "win rate by people's labels alone",
    "people.agreement": "agreement with people",
    "people.verdicts_only": "agreement where it gives a verdict",
    "people.without_ties": "agreement where both name a winner",
    "people.with_the_majority.agreement": "agreement with the majority",
    "people.with_the_majority.cohen": "Cohen's kappa with the majority",
    "people.with_the_mode_of_others": "agreement with the mode of the others",
    "people.ceiling": "one person with the mode of the others",
    "people.minus_ceiling": "judge less ceiling",
    "calibration.ece": "calibration error",
    "calibration.brier": "Brier score",
    "own_answers.share": "points for answers of its own model",
}


def card(
    summary: Mapping[str, Any], description: Mapping[str, Any], worst: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The card as plain values, for the page and for files.

    Args:
        summary: the judge's summary; kept in full under ``summary``.
        description: facts about the judge: kind, model, fingerprint, prompt.
        worst: pairs to read, from :func:`pairs_to_read`.
    """
    numbers = flat(summary)
    facts = [
        ("pairs", f"{summary['pairs']:,}"),
        ("prompts", f"{summary['prompts']:,}"),
        ("games", f"{summary['games']:,}"),
    ]
    if summary["tokens_in"]:
        facts += [("tokens asked", f"{summary['tokens_in']:,}"), ("tokens answered", f"{summary['tokens_out']:,}")]
    facts += [("cost", f"{summary['cost']:.2f}")] if "cost" in summary else []
    return {
        "title": f"Judge {summary['judge']}",
        "subtitle": description["kind"],
        "unit": "share",
        "rule": None,
        "findings": _findings(summary),
        "facts": [*facts, *((name, value) for name, value in description.items() if name != "prompt")],
        "lines": [_line(summary, key, words, numbers[key]) for key, words in _FIGURES.items() if key in numbers],
        "differences": [],
        "tables": [
            *_verdicts(summary),
            *_controls(summary),
            *_alt_test(summary),
            *_self_preference(summary),
            *_categories(summary),
            *_calibration(summary),
        ],
        "texts": [{"title": "What the judge is asked", "text": description["prompt"]}]
        if description.get("prompt")
        else [],
        "worst": list(worst),
        "summary": dict(summary),
    }


def _line(summary: Mapping[str, Any], key: str, words: str, value: float) -> dict[str, Any]:
    place: Any = summary
    *above, last = key.split(".")
    for part in above:
        place = place[part]
    known = place[last]
    if not isinstance(known, Mapping):  # its interval, if any, is in two fields next to it
        known = {"value": value, "low": place.get(f"{last}_low"), "high": place.get(f"{last}_high")}
    return {"name": words, "value": known["value"], "low": known["low"], "high": known["high"]}


def _findings(summary: Mapping[str, Any]) -> list[str]:
    answer = [f"{line[0].upper()}{line[1:]}."] if (line := verdict(summary)) else []
    if summary["no_verdict_share"] == 1:
        return answer
    findings = []
    if (orders := summary.get("orders")) is not None:
        findings.append(f"Both orders give the same verdict on {orders['consistent']:.1%} of the pairs.")
        if orders["slot_p"] is not None and orders["slot_p"] < 0.01:
            side = "first" if orders["slot_bias"] > 0 else "second"
            findings.append(f"It prefers the {side} slot regardless of the answer (p = {orders['slot_p']:.2g}).")
    if summary["no_verdict"]:
        none = f"{summary['no_verdict']} of {summary['games']} games have no verdict"
        findings.append(f"{none}: their pairs count as neither wins nor losses, and agree with nobody.")
    people = summary.get("people", {})
    if "minus_ceiling" in people:
        gap = people["minus_ceiling"]
        often = f"{abs(100 * gap['value']):.1f} points {'less' if gap['value'] < 0 else 'more'} often"
        unsure = "" if sign(gap) else ", which may be chance"
        findings.append(f"It agrees with people {often} than one of them does{unsure}.")
    for name, comparison in (summary.get("own_answers") or {}).get("beside", {}).items():
        gap = comparison["difference"]
        if sign(gap):
            side = "more" if gap["value"] > 0 else "fewer"
            findings.append(f"It gives answers of its own model {abs(gap['value']):.1%} {side} points than {name}.")
    return answer + (
        findings or ["There is nothing to compare this judge with: neither a second order nor people's labels."]
    )


def _table(title: str, words: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "words": words, "columns": list(columns), "rows": [list(row) for row in rows]}


def _verdicts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [(word, f"{n:,}", f"{n / max(1, summary['pairs']):.1%}") for word, n in summary["outcomes"].items()]
    words = "All games of a pair together: their common verdict, or a tie if they name different winners."
    tables = [_table("Verdicts", words, ("verdict", "pairs", "share"), rows)]
    if summary["why_none"]:
        why = [(reason, f"{n:,}") for reason, n in summary["why_none"].items()]
        tables.append(_table("Why there is no verdict", "", ("reason", "games"), why))
    return tables


def _controls(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [controls.table(summary["controls"])] if "controls" in summary else []


def _alt_test(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    tests = summary.get("people", {}).get("alt_test", {})
    rows = [
        (e, f"{t['winning_rate']:.2f}", f"{t['advantage']:.3f}", "passes" if t["passes"] else "fails")
        for e, t in tests.items()
    ]
    words = "Can the judge stand in for a person? It passes if it beats half of them (Calderon et al. 2025)."
    columns = ("worse by at most", "winning rate", "advantage", "result")
    return [_table("Alternative-annotator test", words, columns, rows)] if rows else []


def _self_preference(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    comparisons = (summary.get("own_answers") or {}).get("beside", {})
    rows = [(n, percent(o["share"]), f"{100 * o['difference']['value']:+.1f}") for n, o in comparisons.items()]
    words = "Points for answers of the judge's own model, on the same pairs; the difference is the judge's less theirs."
    return [_table("Self-preference", words, ("compared with", "their points", "difference"), rows)] if rows else []


def _categories(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = summary.get("by_category", [])
    cells = {
        "win rate": lambda line: percent(line["win_rate"]) if line.get("win_rate") else "",
        "agreement with people": lambda line: percent(line["agreement"]) if line.get("agreement") else "",
        "both orders agree": lambda line: f"{line['consistent']:.1%}" if line.get("consistent") is not None else "",
    }
    known = {name: cell for name, cell in cells.items() if any(map(cell, lines))}
    rows = [(line["category"], f"{line['pairs']:,}", *(cell(line) for cell in known.values())) for line in lines]
    return [_table("By category", "", ("category", "pairs", *known), rows)] if rows else []


def _calibration(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = summary.get("calibration")
    if not known:
        return []
    rows = [
        (f"{b['low']:.2f} to {b['high']:.2f}", f"{b['n']:,}", f"{b['confidence']:.3f}", f"{b['right']:.3f}")
        for b in known["bins"]
    ]
    words = (
        f"Probabilities are {100 * known['ece']:.1f} points off on average; a calibrated judge would show "
        f"{100 * known['null']:.1f} by chance."
    )
    return [_table("Calibration", words, ("stated", "pairs", "mean stated", "people agree"), rows)]


def pairs_to_read(
    pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling], people: Labels | None
) -> list[dict[str, str]]:
    """At most twenty pairs to read: the judge contradicts most people, contradicts itself, or gives no verdict.

    Pairs on which people agree most come first; each has the verdicts in both orders and people's labels.
    """
    table, combined = outcome_codes(pairs, games, rulings)
    p = np.full(len(pairs), np.nan) if people is None else aggregate(people, "majority").p_first
    why: dict[int, str] = {}
    for k in range(len(pairs)):
        if combined[k] > 0 and p[k] in (0.0, 1.0) and (p[k] > 0.5) != (combined[k] == 1):
            why[k] = "people prefer the other"
        elif set(table[k].tolist()) == {1, 2}:
            why[k] = "each order names a different winner"
        elif combined[k] == -1:
            why[k] = "no verdict"
    rank = {reason: n for n, reason in enumerate(("people prefer the other", "each order names a different winner"))}
    order = sorted(why, key=lambda k: (rank.get(why[k], 2), -_margin(people, k), k))[:WORST]
    return [
        {
            "why": why[k],
            "verdicts": _games(table[k].tolist()),
            "people": _people(people, k),
            "prompt": _short(pairs[k].prompt),
            "first": _short(pairs[k].answers[0]),
            "second": _short(pairs[k].answers[1]),
        }
        for k in order
    ]


def _margin(people: Labels | None, pair: int) -> int:
    """The difference between the numbers of people who chose each answer."""
    if people is None:
        return 0
    row = people.table[pair]
    return abs(int((row == 0).sum()) - int((row == 1).sum()))


def _games(outcomes: Sequence[int]) -> str:
    words = {1: "first", 2: "second", 0: "tie", -1: "no verdict"}
    by_order = zip(("first shown first", "second shown first"), outcomes, strict=True)
    return "; ".join(f"{order}: {words[code]}" for order, code in by_order if code in words)


def _people(people: Labels | None, pair: int) -> str:
    if people is None:
        return ""
    counts = Counter(CLASSES[label] for label in people.table[pair].tolist() if label >= 0)
    return ", ".join(f"{n} x {label.replace('_', ' ')}" for label, n in counts.most_common())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
