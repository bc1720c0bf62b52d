"""A judge before whom somebody argues beside its controls: the same judge alone, and with one consultant.

Shapes: N pairs, R people. Outcomes are coded as in :mod:`afzal.stats.judging`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.judge import beside
from afzal.judge.debate import Protocol, quotes
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.labels import Labels
from afzal.judge.plain import figure, points
from afzal.judge.summary import codes
from afzal.records import Item, prompt_key
from afzal.stats import judging


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """What a control said of the same pairs: its name, protocol, games and rulings."""

    name: str
    protocol: Protocol
    games: Sequence[Game]
    rulings: Sequence[Ruling]


def beside_controls(
    items: Sequence[Item],
    pairs: Sequence[Pair],
    said: tuple[Sequence[Game], Sequence[Ruling]],
    controls: Sequence[Control],
    people: Labels | None,
    **drawn: int,
) -> dict[str, Any]:
    """By protocol of each control: how often it says the same, and where people's labels are known how often the judge
    and the control agree with them, and the difference, judge less control, with an interval over prompts."""
    prompts = [prompt_key(items[pair.item]) for pair in pairs]
    ours = codes(pairs, *said)[1]
    found: dict[str, Any] = {"quotes": quotes(said[0])}
    for control in controls:
        theirs = codes(pairs, control.games, control.rulings)[1]
        line: dict[str, Any] = {"judge": control.name, "same": _share((ours == theirs).astype(float), prompts)}
        line["no_verdict"] = sum(r.outcome == "none" for r in control.rulings)
        if people is not None and (people.table >= 0).any():
            equal = [_by_pair(beside.equal_labels(each, people)) for each in (ours, theirs)]
            line["agreement"] = _share(equal[1], prompts)
            line["difference"] = _difference(equal[0] - equal[1], prompts, **drawn)
        found[control.protocol] = line
    return found


def _by_pair(equal: np.ndarray) -> np.ndarray:
    """``[N]`` the share of people who say the same; NaN where nobody said anything."""
    given = np.isfinite(equal)
    with np.errstate(invalid="ignore"):
        return np.where(given, equal, 0.0).sum(1) / given.sum(1)


def _share(values: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    return figure(judging.column_shares(values[:, None], prompts)[0]) if np.isfinite(values).any() else None


def _difference(values: np.ndarray, prompts: Sequence[Hashable], **drawn: int) -> dict[str, Any] | None:
    return figure(judging.mean_difference(values, prompts, **drawn)) if np.isfinite(values).any() else None


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures in words."""
    counted = found["quotes"]
    said = [f"  quotes: {counted['verified']} verified, {counted['unverified']} not in the texts"]
    for protocol, line in found.items():
        if protocol == "quotes":
            continue
        text = f"  beside {line['judge']}: the same verdict on {100 * line['same']['value']:.1f} % of the pairs"
        if (gap := line.get("difference")) is not None:
            text += f"; agrees with people {points(gap, ' points')} more often than it"
        said.append(text)
    return said


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the card."""
    rows = []
    for protocol, line in found.items():
        if protocol != "quotes":
            rows.append([line["judge"], *(_cell(line.get(key)) for key in ("same", "agreement", "difference"))])
    words = (
        "The same judge without what was argued, and with one side only, whose answer was drawn. The difference is the "
        "judge's agreement with people less the control's; where its interval holds 0, arguments did not help."
    )
    columns = ["control", "same verdict", "agreement with people", "difference"]
    return {"title": "Controls", "words": words, "columns": columns, "rows": rows}


def _cell(known: Mapping[str, Any] | None) -> str:
    if known is None:
        return ""
    ends = "" if known["low"] is None else f" [{known['low']:.3f}, {known['high']:.3f}]"
    return f"{known['value']:.3f}{ends}"
