"""The card of a judge: what it is, how far it can be trusted, and the pairs to read before one does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afzal.judge import controls
from afzal.judge.aggregate import aggregate
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.labels import CLASSES, Labels
from afzal.judge.summary import codes, flat
from afzal.judge.text import percent, verdict
from afzal.text import sign

WORST = 20
_LONGEST = 2000  # characters of a text that are shown
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


def card(found: Mapping[str, Any], about: Mapping[str, Any], worst: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The card as plain values, for the page and for files.

    Args:
        found: the judge's summary; it is kept whole under ``summary``.
        about: facts of the judge: kind, model, fingerprint, prompt.
        worst: pairs to read, from :func:`pairs_to_read`.
    """
    numbers = flat(found)
    facts = [("pairs", f"{found['pairs']:,}"), ("prompts", f"{found['prompts']:,}"), ("games", f"{found['games']:,}")]
    if found["tokens_in"]:
        facts += [("tokens asked", f"{found['tokens_in']:,}"), ("tokens answered", f"{found['tokens_out']:,}")]
    facts += [("cost", f"{found['cost']:.2f}")] if "cost" in found else []
    return {
        "title": f"Judge {found['judge']}",
        "subtitle": about["kind"],
        "unit": "share",
        "rule": None,
        "findings": _findings(found),
        "facts": [*facts, *((name, value) for name, value in about.items() if name != "prompt")],
        "lines": [_line(found, key, words, numbers[key]) for key, words in _FIGURES.items() if key in numbers],
        "differences": [],
        "tables": [
            *_verdicts(found),
            *_controls(found),
            *_alt_test(found),
            *_own(found),
            *_categories(found),
            *_calibration(found),
        ],
        "texts": [{"title": "What the judge is asked", "text": about["prompt"]}] if about.get("prompt") else [],
        "worst": list(worst),
        "summary": dict(found),
    }


def _line(found: Mapping[str, Any], key: str, words: str, value: float) -> dict[str, Any]:
    place: Any = found
    *above, last = key.split(".")
    for part in above:
        place = place[part]
    known = place[last]
    if not isinstance(known, Mapping):  # its ends stand beside it, if there are any
        known = {"value": value, "low": place.get(f"{last}_low"), "high": place.get(f"{last}_high")}
    return {"name": words, "value": known["value"], "low": known["low"], "high": known["high"]}


def _findings(found: Mapping[str, Any]) -> list[str]:
    answer = [f"{line[0].upper()}{line[1:]}."] if (line := verdict(found)) else []
    if found["no_verdict_share"] == 1:
        return answer
    said = []
    if (orders := found.get("orders")) is not None:
        said.append(f"Both orders give the same verdict on {orders['consistent']:.1%} of the pairs.")
        if orders["slot_p"] is not None and orders["slot_p"] < 0.01:
            side = "first" if orders["slot_bias"] > 0 else "second"
            said.append(f"It prefers the {side} slot whatever stands there (p = {orders['slot_p']:.2g}).")
    if found["no_verdict"]:
        said.append(f"{found['no_verdict']} of {found['games']} games have no verdict; they count for nobody.")
    people = found.get("people", {})
    if "minus_ceiling" in people:
        gap = people["minus_ceiling"]["value"]
        said.append(f"It agrees with people {abs(gap):.1%} {'less' if gap < 0 else 'more'} than one of them does.")
    for name, other in (found.get("own_answers") or {}).get("beside", {}).items():
        gap = other["difference"]
        if sign(gap):
            side = "more" if gap["value"] > 0 else "fewer"
            said.append(f"It gives answers of its own model {abs(gap['value']):.1%} {side} points than {name}.")
    return answer + (said or ["There is nothing to compare this judge with: no second order, no people."])


def _table(title: str, words: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "words": words, "columns": list(columns), "rows": [list(row) for row in rows]}


def _verdicts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [(word, f"{n:,}", f"{n / max(1, found['pairs']):.1%}") for word, n in found["outcomes"].items()]
    words = "All games of a pair together: what they agree on, and a tie where they name different winners."
    tables = [_table("Verdicts", words, ("verdict", "pairs", "share"), rows)]
    if found["why_none"]:
        why = [(reason, f"{n:,}") for reason, n in found["why_none"].items()]
        tables.append(_table("Why there is no verdict", "", ("reason", "games"), why))
    return tables


def _controls(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [controls.table(found["controls"])] if "controls" in found else []


def _alt_test(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    tests = found.get("people", {}).get("alt_test", {})
    rows = [
        (e, f"{t['winning_rate']:.2f}", f"{t['advantage']:.3f}", "passes" if t["passes"] else "fails")
        for e, t in tests.items()
    ]
    words = "May the judge stand in for a person? It passes where it beats half of them (Calderon et al. 2025)."
    columns = ("worse by at most", "winning rate", "advantage", "result")
    return [_table("Alternative-annotator test", words, columns, rows)] if rows else []


def _own(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    beside = (found.get("own_answers") or {}).get("beside", {})
    rows = [(n, percent(o["share"]), f"{100 * o['difference']['value']:+.1f}") for n, o in beside.items()]
    words = "Points for answers of the judge's own model, on the same pairs; the difference is the judge's less theirs."
    return [_table("Self-preference", words, ("beside", "their points", "difference"), rows)] if rows else []


def _categories(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = found.get("by_category", [])
    cells = {
        "win rate": lambda line: percent(line["win_rate"]) if line.get("win_rate") else "",
        "agreement with people": lambda line: percent(line["agreement"]) if line.get("agreement") else "",
        "both orders agree": lambda line: f"{line['consistent']:.1%}" if line.get("consistent") is not None else "",
    }
    known = {name: of for name, of in cells.items() if any(map(of, lines))}
    rows = [(line["category"], f"{line['pairs']:,}", *(of(line) for of in known.values())) for line in lines]
    return [_table("By category", "", ("category", "pairs", *known), rows)] if rows else []


def _calibration(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = found.get("calibration")
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
    """At most twenty pairs: judged against what most people say, judged differently in the two orders, no verdict.

    Those on which people are most of one mind come first; each with the verdicts of both orders and what people said.
    """
    table, together = codes(pairs, games, rulings)
    p = np.full(len(pairs), np.nan) if people is None else aggregate(people, "majority").p_first
    why: dict[int, str] = {}
    for k in range(len(pairs)):
        if together[k] > 0 and p[k] in (0.0, 1.0) and (p[k] > 0.5) != (together[k] == 1):
            why[k] = "people prefer the other"
        elif set(table[k].tolist()) == {1, 2}:
            why[k] = "each order names another winner"
        elif together[k] == -1:
            why[k] = "no verdict"
    rank = {reason: n for n, reason in enumerate(("people prefer the other", "each order names another winner"))}
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
    """How many more people named the winner of a pair than the loser."""
    if people is None:
        return 0
    row = people.table[pair]
    return abs(int((row == 0).sum()) - int((row == 1).sum()))


def _games(outcomes: Sequence[int]) -> str:
    words = {1: "first", 2: "second", 0: "tie", -1: "no verdict"}
    named = zip(("first shown first", "second shown first"), outcomes, strict=True)
    return "; ".join(f"{order}: {words[code]}" for order, code in named if code in words)


def _people(people: Labels | None, pair: int) -> str:
    if people is None:
        return ""
    said = Counter(CLASSES[label] for label in people.table[pair].tolist() if label >= 0)
    return ", ".join(f"{n} x {label.replace('_', ' ')}" for label, n in said.most_common())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
