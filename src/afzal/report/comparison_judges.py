"""Judges' verdicts on a comparison, as plain data for its page: tables of cells, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.report.comparison_views import NOTHING, Cell, Table, labels, share_cell, table_of_wins
from afzal.text import number

Figure = Mapping[str, Any]


def against_the_start(body: Mapping[str, Any]) -> Table:
    """The win rate of every method against the start by the true reward and by each judge."""
    chief, judges = body["rewards"][0], body["judges"]
    by_reward = {w["ours"]: w for w in body["wins"] if w["theirs"] == "start"}
    by_judge = [{w["ours"]: w for w in j["wins"] if w["theirs"] == "start"} for j in judges]
    rows = [
        [(m["label"], ""), *(_rate(rates.get(m["name"])) for rates in (by_reward, *by_judge))] for m in body["methods"]
    ]
    return {"columns": ["method", chief, *(j["name"] for j in judges)], "rows": rows}


def win_tables(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each judge's win rates for every two policies."""
    return [{"name": j["name"], **table_of_wins(labels(body), j["wins"])} for j in body["judges"]]


def reliability(body: Mapping[str, Any]) -> Table:
    """How far each judge can be trusted: missing verdicts, both orders, slots, length, and agreement with people."""
    columns = ["judge", "pairs", "no verdict", "consistent", "slot bias", "longer wins"]
    columns += ["a person", "most people", "ceiling"] if has_people(body) else []
    return {"columns": columns, "rows": [_reliability_row(j, len(columns)) for j in body["judges"]]}


def has_people(body: Mapping[str, Any]) -> bool:
    """Whether any judge is compared with people."""
    return any("people" in j["summary"] for j in body["judges"])


def _reliability_row(judge: Mapping[str, Any], columns: int) -> list[Cell]:
    s = judge["summary"]
    orders = s.get("orders")
    cells = [(judge["name"], judge["kind"]), (number(s["pairs"]), ""), (_percent(s["no_verdict_share"]), "")]
    cells += [("one order", ""), (NOTHING, "")] if orders is None else [_plain(orders["consistent"]), _bias(orders)]
    cells.append(_rate(s["longer_wins"]))
    if columns > len(cells):
        people = s.get("people", {})
        cells += [_rate(people.get(key)) for key in ("agreement", "with_the_mode_of_others", "ceiling")]
    return cells


def agreement(body: Mapping[str, Any]) -> Table:
    """Judge against judge, the true reward last: how often both give the same verdict on a pair."""
    names = [*(j["name"] for j in body["judges"]), body["rewards"][0]]
    by_pair = {(row[a], row[b]): row["same"] for row in body["judge_agreement"] for a, b in _BOTH_WAYS}
    rows = [[(a, ""), *(("", "") if a == b else _rate(by_pair.get((a, b))) for b in names)] for a in names]
    return {"columns": ["", *names], "rows": rows}


_BOTH_WAYS = (("first", "second"), ("second", "first"))


def disagreements(body: Mapping[str, Any]) -> list[str]:
    """A sentence for each judge that clearly prefers a different policy than the true reward."""
    chief, names = body["rewards"][0], labels(body)
    by_reward = {(w["ours"], w["theirs"]): w for w in body["wins"]}
    sentences = []
    for judge in body["judges"]:
        pairs = [
            f"{names[w['ours']]} to {names[w['theirs']]}"
            for w in judge["wins"]
            if _side(w) > 0 and _side(by_reward.get((w["ours"], w["theirs"]))) < 0
        ]
        if pairs:
            sentences.append(f"{judge['name']} prefers {' and '.join(pairs)}; {chief} says the opposite.")
    return sentences


def _side(row: Figure | None) -> int:
    """1 if a win rate is clearly above a half, -1 if clearly below, else 0."""
    if row is None or row["low"] is None:
        return 0
    return int(row["low"] > 0.5) - int(row["high"] < 0.5)


def _rate(row: Figure | None) -> Cell:
    if row is None or row.get("value") is None:
        return NOTHING, ""
    return share_cell(row)


def _plain(value: float | None) -> Cell:
    return (NOTHING if value is None else _percent(value)), ""


def _bias(orders: Mapping[str, Any]) -> Cell:
    if orders["slot_bias"] is None:
        return NOTHING, ""
    p = orders["slot_p"]
    sign = "+" if orders["slot_bias"] > 0 else ""
    return f"{sign}{100 * orders['slot_bias']:.1f} points".replace("-", "\N{MINUS SIGN}"), "" if p is None else (
        f"p = {p:.3f}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"
