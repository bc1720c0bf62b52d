"""A judge's summary as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.judge import controls
from afzal.judge.figures import points
from afzal.text import interval, number, plural

Plain = Mapping[str, Any]


def lines(summary: Plain) -> list[str]:
    """The lines of a summary made by :func:`afzal.judge.summary.summary`."""
    return [
        f"judge {summary['judge']}: {plural(summary['pairs'], 'pair')} of {plural(summary['prompts'], 'prompt')}, "
        f"{plural(summary['games'], 'game')}",
        *(_models(summary["models"]) if "models" in summary else ()),
        *(_orders(summary["orders"]) if "orders" in summary else ()),
        *_verdicts(summary),
        *(_people(summary["people"]) if "people" in summary else ()),
        *(_calibration(summary["calibration"]) if summary.get("calibration") else ()),
        *(_self_preference(summary["own_answers"]) if summary.get("own_answers") else ()),
        *(controls.lines(summary["controls"]) if "controls" in summary else ()),
        *map(_category, summary.get("by_category", ())),
        *_cost(summary),
    ]


def verdict(summary: Plain) -> str:
    """A sentence on whether the first model is better; empty if the answers are not from two models.

    If no reply of the judge was readable, the sentence says so.
    """
    if summary["no_verdict_share"] == 1:
        return f"not judged: {summary['judge']} gave no verdict in {plural(summary['games'], 'game')}"
    m = summary.get("models", {})
    rate = m.get("win_rate")
    if rate is None:
        return ""
    word = ("not told apart", "better", "worse")[side(rate)]
    by = f"on {plural(rate.get('n') or summary['prompts'], 'prompt')} by {summary['judge']}"
    return f"{word}: {m['ours']} wins {percent(rate)} against {m['theirs']} {by}"


def side(rate: Plain) -> int:
    """1 if the interval of a win rate is above one half, -1 if it is below, 0 if it contains it or is unknown."""
    if rate["low"] is None:
        return 0
    return (rate["low"] > 0.5) - (rate["high"] < 0.5)


def _models(m: Plain) -> list[str]:
    total = max(1, m["win"] + m["tie"] + m["loss"])
    record = ", ".join(f"{word} {100 * m[word] / total:.1f}" for word in ("win", "tie", "loss"))
    line = f"  {m['ours']} against {m['theirs']}: {record}"
    if "win_rate" in m:
        line += f"; win rate {percent(m['win_rate'])}, by length alone {100 * m['win_rate_of_the_longer']:.1f}"
    lines = [line]
    if (c := m.get("length_controlled")) is not None:
        marked = " (extrapolated: one side is nearly always longer)" if c["extrapolated"] else ""
        lines.append(f"  at equal lengths {percent(c)}, lengths overlap on {c['overlap']:.0%}{marked}")
    if m.get("lengths_decide"):
        lines.append("  at equal lengths: not known, since lengths alone decide who won")
    if (w := m.get("with_people")) is not None:
        lines.append(
            f"  with people's labels on {w['prompts']} prompts {percent(w['corrected'])}; "
            f"people alone {percent(w['people_alone'])}"
        )
    return lines


def _orders(o: Plain) -> list[str]:
    line = f"  consistent {100 * o['consistent']:.1f}%, contradictions {o['contradictions']}"
    if o["slot_bias"] is not None:
        p = "" if o["slot_p"] is None else f" (p = {o['slot_p']:.2g})"
        line += f", slot bias {100 * o['slot_bias']:+.1f} points{p}, where + is the first slot"
    return [line]


def _verdicts(summary: Plain) -> list[str]:
    line = f"  no verdict {100 * summary['no_verdict_share']:.1f}%"
    if summary["longer_wins"] is not None:
        line += f", the longer answer wins {percent(summary['longer_wins'])}"
    return [line, *(f"    {n} x {why}" for why, n in summary["why_none"].items())]


def _people(h: Plain) -> list[str]:
    line = f"  agrees with people on {percent(h['agreement'])} of {plural(h['labels'], 'label')}"
    if h["without_ties"] is not None and h["without_ties"]["pairs"] < h["labels"]:
        line += f", on {percent(h['without_ties'])} where both name a winner"
    lines = [line]
    if "ceiling" in h:
        lines.append(
            f"  with the mode of the others {percent(h['with_the_mode_of_others'])}, where one of them reaches "
            f"{percent(h['ceiling'])}: {100 * h['minus_ceiling']['value']:+.1f} points"
        )
    if test := h.get("alt_test", {}).get("0.2"):
        verb = "passes" if test["passes"] else "fails"
        lines.append(f"  {verb} the alternative-annotator test at epsilon 0.2 (advantage {test['advantage']:.3f})")
    return lines


def _calibration(c: Plain) -> list[str]:
    return [
        f"  states probabilities {100 * c['ece']:.1f} points off on average; a calibrated judge would show "
        f"{100 * c['null']:.1f}; Brier score "
        f"{number(c['brier'], 3)} {interval(c['brier_low'], c['brier_high'])}".rstrip()
        + " (0.25 is a coin)"
    ]


def _self_preference(figures: Plain) -> list[str]:
    lines = [f"  gives answers of its own model {percent(figures['share'])} of the points"]
    for name, comparison in figures["beside"].items():
        gap = comparison["difference"]
        lines.append(f"    {points(gap, ' points')} compared with {name}, on {gap['pairs']} pairs")
    return lines


def _category(line: Plain) -> str:
    cells = [f"  {line['category']}: {line['pairs']} pairs"]
    cells += [f"win rate {percent(line['win_rate'])}"] if line.get("win_rate") else []
    cells += [f"agrees with people {percent(line['agreement'])}"] if line.get("agreement") else []
    cells += [f"consistent {100 * line['consistent']:.1f}%"] if line.get("consistent") is not None else []
    return ", ".join(cells)


def _cost(summary: Plain) -> list[str]:
    if not summary["tokens_in"]:
        return []
    cost = f", cost {summary['cost']:.2f}" if "cost" in summary else ""
    return [f"  tokens: {summary['tokens_in']:,} in requests, {summary['tokens_out']:,} in replies{cost}"]


def percent(known: Plain) -> str:
    """A share with its interval, in percent."""
    if known["value"] is None:
        return "-"
    ends = "" if known["low"] is None else f" [{100 * known['low']:.1f}, {100 * known['high']:.1f}]"
    return f"{100 * known['value']:.1f}%{ends}"
