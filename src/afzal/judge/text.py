"""The summary of a judge in words, line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.judge import controls
from afzal.judge.plain import points
from afzal.text import interval, number, plural

Plain = Mapping[str, Any]


def lines(found: Plain) -> list[str]:
    """A summary, as :func:`afzal.judge.summary.summary` gives it."""
    return [
        f"judge {found['judge']}: {plural(found['pairs'], 'pair')} of {plural(found['prompts'], 'prompt')}, "
        f"{plural(found['games'], 'game')}",
        *(_models(found["models"]) if "models" in found else ()),
        *(_orders(found["orders"]) if "orders" in found else ()),
        *_verdicts(found),
        *(_people(found["people"]) if "people" in found else ()),
        *(_calibration(found["calibration"]) if found.get("calibration") else ()),
        *(_own(found["own_answers"]) if found.get("own_answers") else ()),
        *(controls.lines(found["controls"]) if "controls" in found else ()),
        *map(_category, found.get("by_category", ())),
        *_cost(found),
    ]


def verdict(found: Plain) -> str:
    """Whether the first model is better, in a sentence; empty where the answers are not of two models.

    Where the judge said nothing that could be read, that.
    """
    if found["no_verdict_share"] == 1:
        return f"not judged: {found['judge']} gave no verdict in {plural(found['games'], 'game')}"
    m = found.get("models", {})
    rate = m.get("win_rate")
    if rate is None:
        return ""
    word = ("not told apart", "better", "worse")[side(rate)]
    by = f"on {plural(found['prompts'], 'prompt')} by {found['judge']}"
    return f"{word}: {m['ours']} wins {percent(rate)} against {m['theirs']} {by}"


def side(rate: Plain) -> int:
    """1 where the interval of a win rate is above a half, -1 where it is below, 0 where it tells nothing apart."""
    if rate["low"] is None:
        return 0
    return (rate["low"] > 0.5) - (rate["high"] < 0.5)


def _models(m: Plain) -> list[str]:
    total = max(1, m["win"] + m["tie"] + m["loss"])
    record = ", ".join(f"{word} {100 * m[word] / total:.1f}" for word in ("win", "tie", "loss"))
    line = f"  {m['ours']} against {m['theirs']}: {record}"
    if "win_rate" in m:
        line += f"; win rate {percent(m['win_rate'])}, by length alone {100 * m['win_rate_of_the_longer']:.1f}"
    said = [line]
    if (c := m.get("length_controlled")) is not None:
        marked = " (extrapolated: one side is nearly always longer)" if c["extrapolated"] else ""
        said.append(f"  at equal lengths {percent(c)}, lengths overlap on {c['overlap']:.0%}{marked}")
    if m.get("lengths_decide"):
        said.append("  at equal lengths: not known, since lengths alone tell who won")
    if (w := m.get("with_people")) is not None:
        said.append(
            f"  with people's labels on {w['prompts']} prompts {percent(w['corrected'])}; "
            f"people alone {percent(w['people_alone'])}"
        )
    return said


def _orders(o: Plain) -> list[str]:
    line = f"  consistent {100 * o['consistent']:.1f} %, contradictions {o['contradictions']}"
    if o["slot_bias"] is not None:
        p = "" if o["slot_p"] is None else f" (p = {o['slot_p']:.2g})"
        line += f", slot bias {100 * o['slot_bias']:+.1f} points{p}, where + is the first slot"
    return [line]


def _verdicts(found: Plain) -> list[str]:
    line = f"  no verdict {100 * found['no_verdict_share']:.1f} %"
    if found["longer_wins"] is not None:
        line += f", the longer answer wins {percent(found['longer_wins'])}"
    return [line, *(f"    {n} x {why}" for why, n in found["why_none"].items())]


def _people(h: Plain) -> list[str]:
    line = f"  agrees with people on {percent(h['agreement'])} of {plural(h['labels'], 'label')}"
    if h["without_ties"] is not None and h["without_ties"]["pairs"] < h["labels"]:
        line += f", on {percent(h['without_ties'])} where both name a winner"
    said = [line]
    if "ceiling" in h:
        said.append(
            f"  with the mode of the others {percent(h['with_the_mode_of_others'])}, where one of them reaches "
            f"{percent(h['ceiling'])}: {100 * h['minus_ceiling']['value']:+.1f} points"
        )
    if test := h.get("alt_test", {}).get("0.2"):
        passed = "passes" if test["passes"] else "fails"
        said.append(f"  {passed} the alternative-annotator test at epsilon 0.2 (advantage {test['advantage']:.3f})")
    return said


def _calibration(c: Plain) -> list[str]:
    return [
        f"  states probabilities {100 * c['ece']:.1f} points off on average, where a calibrated judge would show "
        f"{100 * c['null']:.1f}; Brier score "
        f"{number(c['brier'], 3)} {interval(c['brier_low'], c['brier_high'])}".rstrip()
        + " (0.25 is a coin)"
    ]


def _own(own: Plain) -> list[str]:
    said = [f"  gives answers of its own model {percent(own['share'])} of the points"]
    for name, other in own["beside"].items():
        gap = other["difference"]
        said.append(f"    {points(gap, ' points')} beside {name}, on {gap['pairs']} pairs")
    return said


def _category(line: Plain) -> str:
    cells = [f"  {line['category']}: {line['pairs']} pairs"]
    cells += [f"win rate {percent(line['win_rate'])}"] if line.get("win_rate") else []
    cells += [f"agrees with people {percent(line['agreement'])}"] if line.get("agreement") else []
    cells += [f"consistent {100 * line['consistent']:.1f} %"] if line.get("consistent") is not None else []
    return ", ".join(cells)


def _cost(found: Plain) -> list[str]:
    if not found["tokens_in"]:
        return []
    paid = f", cost {found['cost']:.2f}" if "cost" in found else ""
    return [f"  tokens: {found['tokens_in']:,} asked, {found['tokens_out']:,} answered{paid}"]


def percent(known: Plain) -> str:
    """A share with its interval, in percent."""
    if known["value"] is None:
        return "-"
    ends = "" if known["low"] is None else f" [{100 * known['low']:.1f}, {100 * known['high']:.1f}]"
    return f"{100 * known['value']:.1f} %{ends}"
