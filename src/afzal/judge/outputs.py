"""What a judge leaves behind: verdicts, rows with its votes, the summary, and its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data
from afzal.judge.games import Game, Ruling
from afzal.records import Comparison, Item

VERDICTS, ROWS, SUMMARY = "verdicts.jsonl", "rows.jsonl", "summary.json"


def verdict_row(judge: str, fingerprint: str, items: Sequence[Item], game: Game, ruling: Ruling) -> dict[str, Any]:
    """One game as JSON values."""
    pair = game.pair
    return {
        "id": items[pair.item].id,
        "pair": [pair.first, pair.second],
        "judge": judge,
        "sha256": fingerprint,
        "order": [pair.second, pair.first] if game.turned else [pair.first, pair.second],
        "sample": game.sample,
        "verdict": ruling.outcome,
        "p_first": ruling.p_first,
        "why_none": ruling.why or None,
        "tokens": list(ruling.tokens),
    }


def with_votes(items: Sequence[Item], judge: str, games: Sequence[Game], rulings: Sequence[Ruling]) -> list[Item]:
    """The rows with each verdict as one more vote, under the judge's name; a game without a verdict gives none."""
    votes: dict[int, list[Comparison]] = {}
    for game, ruling in zip(games, rulings, strict=True):
        pair = game.pair
        if ruling.outcome == "none":
            continue
        shown = pair.second if game.turned else pair.first
        said = Comparison(
            pair.first, pair.second, ruling.outcome, probability=ruling.p_first, annotator=judge, shown_first=shown
        )
        votes.setdefault(pair.item, []).append(said)
    return [replace(item, votes=(*item.votes, *votes.get(k, ()))) for k, item in enumerate(items)]


def write(
    folder: Path, items: Sequence[Item], verdicts: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]
) -> None:
    """Write the verdicts, the rows with votes and the summaries."""
    from afzal.runs import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in verdicts)
    atomic_write(folder / VERDICTS, lines.encode("utf-8", "surrogatepass"))
    data.write(items, folder / ROWS, "afzal")
    atomic_write(folder / SUMMARY, json.dumps(list(summaries), indent=1, ensure_ascii=False) + "\n")


def card(found: Mapping[str, Any], about: Mapping[str, Any], worst: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The judge's card as plain values, for the page.

    Args:
        about: facts of the judge: kind, model, fingerprint, prompt.
        worst: pairs to read, with ``prompt``, ``first``, ``second`` and ``why``.
    """
    from afzal.judge.summary import flat

    named = {
        "orders.consistent": "both orders agree",
        "orders.first_slot": "share of winners shown first",
        "orders.slot_bias": "slot bias towards the first",
        "no_verdict_share": "games without a verdict",
        "longer_wins": "the longer answer wins",
        "models.win_rate": "win rate of the first model",
        "models.length_controlled": "win rate at equal lengths",
        "models.with_people.corrected": "win rate corrected by people's labels",
        "people.agreement": "agreement with people",
        "people.with_the_mode_of_others": "agreement with the mode of the others",
        "people.ceiling": "one person with the mode of the others",
        "people.minus_ceiling": "judge less ceiling",
    }
    numbers = flat(found)
    figures = [{"name": words, **_interval(found, key, numbers[key])} for key, words in named.items() if key in numbers]
    facts = [("pairs", f"{found['pairs']:,}"), ("prompts", f"{found['prompts']:,}"), ("games", f"{found['games']:,}")]
    return {
        "title": f"Judge {found['judge']}",
        "subtitle": about["kind"],
        "unit": "share",
        "rule": None,
        "findings": _findings(found),
        "facts": [*facts, *((name, value) for name, value in about.items() if name != "prompt")],
        "lines": [f | {"rank": k} for k, f in enumerate(figures, 1) if f["low"] is not None and 0 <= f["value"] <= 1],
        "figures": figures,
        "differences": [],
        "texts": [{"title": "What the judge is asked", "text": about["prompt"]}] if about.get("prompt") else [],
        "worst": list(worst),
    }


def _interval(found: Mapping[str, Any], key: str, value: float) -> dict[str, Any]:
    place: Any = found
    for part in key.split("."):
        place = place[part]
    if isinstance(place, Mapping):
        return {"value": place["value"], "low": place["low"], "high": place["high"]}
    return {"value": value, "low": None, "high": None}


def _findings(found: Mapping[str, Any]) -> list[str]:
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
    return said or ["There is nothing to compare this judge with: no second order, no people."]
