"""A judge with arguments compared with its controls: the same judge alone, and with one consultant.

Shapes: N pairs, R people. Outcomes are coded as in :mod:`afzal.stats.judging`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.judge import validation
from afzal.judge.debate import Protocol, count_quotes
from afzal.judge.figures import figure, points
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.labels import Labels
from afzal.judge.summary import outcome_codes
from afzal.records import Item, prompt_key
from afzal.stats import judging


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A control's name, protocol, games and rulings on the same pairs."""

    name: str
    protocol: Protocol
    games: Sequence[Game]
    rulings: Sequence[Ruling]


def compare_with_controls(
    items: Sequence[Item],
    pairs: Sequence[Pair],
    judge_results: tuple[Sequence[Game], Sequence[Ruling]],
    controls: Sequence[Control],
    people: Labels | None,
    **resampling: int,
) -> dict[str, Any]:
    """By protocol of each control: how often its verdicts equal the judge's. With people's labels, also the control's
    agreement with them and the difference, judge less control, with an interval over prompts."""
    prompts = [prompt_key(items[pair.item]) for pair in pairs]
    judge_codes = outcome_codes(pairs, *judge_results)[1]
    figures: dict[str, Any] = {"quotes": count_quotes(judge_results[0])}
    for control in controls:
        control_codes = outcome_codes(pairs, control.games, control.rulings)[1]
        line: dict[str, Any] = {
            "judge": control.name,
            "same": _share((judge_codes == control_codes).astype(float), prompts),
        }
        line["no_verdict"] = sum(r.outcome == "none" for r in control.rulings)
        if people is not None and (people.table >= 0).any():
            equal = [_by_pair(validation.equal_labels(codes, people)) for codes in (judge_codes, control_codes)]
            line["agreement"] = _share(equal[1], prompts)
            line["difference"] = _difference(equal[0] - equal[1], prompts, **resampling)
        figures[control.protocol] = line
    return figures


def _by_pair(equal: np.ndarray) -> np.ndarray:
    """``[N]`` the share of people who agree; NaN without labels."""
    known = np.isfinite(equal)
    with np.errstate(invalid="ignore"):
        return np.where(known, equal, 0.0).sum(1) / known.sum(1)


def _share(values: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    return figure(judging.column_shares(values[:, None], prompts)[0]) if np.isfinite(values).any() else None


def _difference(values: np.ndarray, prompts: Sequence[Hashable], **resampling: int) -> dict[str, Any] | None:
    return figure(judging.mean_difference(values, prompts, **resampling)) if np.isfinite(values).any() else None


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    counted = figures["quotes"]
    sentences = [f"  quotes: {counted['verified']} verified, {counted['unverified']} not in the texts"]
    for protocol, line in figures.items():
        if protocol == "quotes":
            continue
        text = f"  compared with {line['judge']}: the same verdict on {100 * line['same']['value']:.1f}% of the pairs"
        if (gap := line.get("difference")) is not None:
            text += f"; agrees with people {points(gap, ' points')} more often than this control"
        sentences.append(text)
    return sentences


def table(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as a table for the card."""
    rows = []
    for protocol, line in figures.items():
        if protocol != "quotes":
            rows.append([line["judge"], *(_cell(line.get(key)) for key in ("same", "agreement", "difference"))])
    words = (
        "The same judge without arguments, and with arguments for one answer only, drawn at random. The difference is "
        "the judge's agreement with people less the control's; if its interval contains 0, arguments did not "
        "measurably help."
    )
    columns = ["control", "same verdict", "agreement with people", "difference"]
    return {"title": "Controls", "words": words, "columns": columns, "rows": rows}


def _cell(known: Mapping[str, Any] | None) -> str:
    if known is None:
        return ""
    ends = "" if known["low"] is None else f" [{known['low']:.3f}, {known['high']:.3f}]"
    return f"{known['value']:.3f}{ends}"
