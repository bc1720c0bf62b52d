"""Several models against one other, by judges and by people: win rates, and who agrees with whom.

The table of Rafailov et al. 2023 (Table 2), with an interval for each figure: one column for each model, all of them
compared with the same other model. Win rates count a tie as half a win; a pair without a verdict counts for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.judge import annotators, beside
from afzal.judge.games import Pair
from afzal.judge.labels import Labels
from afzal.judge.plain import figure, points
from afzal.judge.summary import share_of, two_models
from afzal.judge.text import percent, side
from afzal.records import Item, prompt_key

PEOPLE = "people"

_CERTAIN = 0.01  # a smaller p-value of no slot bias is told


@dataclass(frozen=True, slots=True)
class Column:
    """One model against the other: what each judge says (``summary.json``) and what people alone say; None without
    people's votes on these pairs."""

    name: str
    summaries: Sequence[Mapping[str, Any]]
    people: Mapping[str, Any] | None


def of_people(
    items: Sequence[Item], pairs: Sequence[Pair], labels: Labels | None, *, resamples: int = 1000
) -> dict[str, Any] | None:
    """What people alone say of two models: labels, the win rate of the first model over the pairs that they ordered,
    and the share of pairs of labels on one pair of answers that are equal; None without labels, or without two models.
    """
    sides = two_models(items, pairs)
    if labels is None or sides is None:
        return None
    won = beside.points_of_people(labels)
    won = np.where(sides[2] > 0, won, 1 - won)
    rate = share_of(won, np.isfinite(won), [prompt_key(items[p.item]) for p in pairs])
    if rate is None:
        return None
    agreed = annotators.agreement_of(labels, resamples=resamples)
    return {
        "people": int((labels.table >= 0).any(0).sum()),
        "labels": int((labels.table >= 0).sum()),
        "win_rate": rate,
        "agreement": None if agreed is None else figure(agreed.raw),
    }


def table(columns: Sequence[Column], other: str) -> dict[str, Any]:
    """The table as plain values, as :func:`afzal.report.write_board` takes them.

    ``lines`` has a win rate for each model and each who judged; ``agreement`` how often two who judged the same pair
    say the same; ``tables`` the same side by side.
    """
    judges = [found["judge"] for found in columns[0].summaries]
    return {
        "title": f"Win rates against {other}",
        "subtitle": ", ".join(c.name for c in columns),
        "unit": f"win rate against {other}",
        "rule": 0.5,
        "findings": _findings(columns, judges, other),
        "facts": [("against", other), ("judges", ", ".join(judges))],
        "lines": [line for c in columns for line in _lines(c)],
        "differences": [],
        "agreement": [line for c in columns for line in _agreement(c)],
        "tables": [_side_by_side(columns, judges)],
    }


def lines(board: Mapping[str, Any]) -> list[str]:
    """The table in words, line by line, with its columns below each other."""
    side = board["tables"][0]
    rows = [side["columns"], *side["rows"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"{board['title']}: {board['subtitle']}", *cells, *board["findings"], side["words"]]


def _lines(column: Column) -> list[dict[str, Any]]:
    said = [(found["judge"], _rate(found), found["pairs"]) for found in column.summaries]
    if column.people is not None:
        said.append((PEOPLE, column.people["win_rate"], column.people["win_rate"]["pairs"]))
    return [
        {"name": f"{column.name} by {who}", "model": column.name, "by": who, **_ends(rate), "pairs": pairs}
        for who, rate, pairs in said
    ]


def _rate(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return found.get("models", {}).get("win_rate")


def _ends(known: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: None if known is None else known[key] for key in ("value", "low", "high")}


def _agreement(column: Column) -> list[dict[str, Any]]:
    found = []
    for seen in column.summaries:
        if (beside_people := seen.get("people")) is not None:
            agreed = beside_people["agreement"]
            found.append({"model": column.name, "first": seen["judge"], "second": PEOPLE, **_ends(agreed)})
            if "minus_ceiling" in beside_people:
                found[-1]["minus_ceiling"] = _ends(beside_people["minus_ceiling"])
    if column.people is not None and column.people["agreement"] is not None:
        found.append({"model": column.name, "first": PEOPLE, "second": PEOPLE, **_ends(column.people["agreement"])})
    return found


def _side_by_side(columns: Sequence[Column], judges: Sequence[str]) -> dict[str, Any]:
    """The models side by side, a row for each figure."""
    voted = any(c.people is not None for c in columns)
    rows = [["pairs of answers", *(f"{c.summaries[0]['pairs']:,}" for c in columns)]]
    rows += [["labels of people", *(_cell(c.people, lambda p: f"{p['labels']:,}") for c in columns)]] if voted else []
    for k, name in enumerate(judges):
        rows.append([f"win rate by {name}", *(_cell(_rate(c.summaries[k]), percent) for c in columns)])
    for k, name in enumerate(judges):
        rows += _trust(name, [c.summaries[k] for c in columns])
    if voted:
        rows.append(["win rate by people", *(_cell(c.people, lambda p: percent(p["win_rate"])) for c in columns)])
        for k, name in enumerate(judges):
            seen = [c.summaries[k].get("people") for c in columns]
            rows.append([f"{name} agrees with a person", *(_cell(s, lambda p: percent(p["agreement"])) for s in seen)])
            gaps = [None if s is None else s.get("minus_ceiling") for s in seen]
            rows += [[f"{name} less a person", *(_cell(gap, points) for gap in gaps)]] if any(gaps) else []
        agreed = [None if c.people is None else c.people["agreement"] for c in columns]
        rows.append(["a person agrees with another", *(_cell(known, percent) for known in agreed)])
    words = "Win rates count a tie as half a win. Agreement is the share of equal labels, a tie being a label."
    if voted:
        words += (
            " A judge less a person: its agreement with the most frequent label of the other people, less what one of"
            " them reaches on the same pairs, in points."
        )
    return {"title": "Side by side", "words": words, "columns": ["", *(c.name for c in columns)], "rows": rows}


def _trust(name: str, seen: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What a win rate does not show of a judge: games without a verdict, and how often both orders agree."""
    share = lambda value: f"{100 * value:.1f} %"  # noqa: E731
    rows = []
    if any(found["no_verdict"] for found in seen):
        rows.append([f"games without a verdict by {name}", *(share(found["no_verdict_share"]) for found in seen)])
    if any("orders" in found for found in seen):
        agree = [found.get("orders", {}).get("consistent") for found in seen]
        rows.append([f"both orders agree by {name}", *(_cell(known, share) for known in agree)])
    return rows


def _cell(known: Any, shown: Callable[[Any], str]) -> str:
    return "-" if known is None else shown(known)


def _findings(columns: Sequence[Column], judges: Sequence[str], other: str) -> list[str]:
    said = []
    for c in columns:
        rate = c.people["win_rate"] if c.people is not None else _rate(c.summaries[0])
        who = PEOPLE if c.people is not None else judges[0]
        if rate is not None:
            told = "" if side(rate) else ", not told apart"
            said.append(f"{c.name} against {other}, by {who}: {percent(rate)}{told}.")
    for k, name in enumerate(judges):
        games = [(c.name, found) for c in columns if (found := c.summaries[k].get("orders")) is not None]
        leaning = [model for model, found in games if found["slot_p"] is not None and found["slot_p"] < _CERTAIN]
        said += [f"{name} prefers a slot whatever stands there, on {', '.join(leaning)}."] if leaning else []
        seen = [
            (c.name, rate, c.people["win_rate"])
            for c in columns
            if c.people is not None and (rate := _rate(c.summaries[k])) is not None
        ]
        wrong = [name for name, rate, by_people in seen if _apart(rate, by_people)]
        if wrong:
            said.append(f"{name} and people part on {', '.join(wrong)}: their intervals of the win rate do not meet.")
        if len(seen) > 1:
            ranked = [c for c, *_ in sorted(seen, key=lambda known: -known[1]["value"])]
            same = ranked == [c for c, *_ in sorted(seen, key=lambda known: -known[2]["value"])]
            words = "as people do" if same else "otherwise than people"
            said.append(f"{name} ranks the models {words}: {', '.join(ranked)}.")
    missing = [c.name for c in columns if c.people is None]
    if missing and len(missing) < len(columns):
        said.append(f"There are no votes of people on {', '.join(missing)}.")
    return said


def _apart(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    if one["low"] is None or two["low"] is None:
        return False
    return one["low"] > two["high"] or two["low"] > one["high"]
