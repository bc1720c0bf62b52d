"""The parts of a comparison page as plain data: rows of cells, sentences, and (name, value) pairs.

A cell is a text and, in small print below it, its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.text import duration, interval, number, plural, signed

Cell = tuple[str, str]
Table = dict[str, Any]

_NAMES = {
    "kl": "KL to the start, nats per answer",
    "seconds": "seconds of training",
    "tokens": "tokens per answer",
    "unended": "share of answers without EOS",
}
NOTHING = "\N{EM DASH}"


def display_name(figure: str) -> str:
    """A figure's display name; a reward keeps its own name."""
    return _NAMES.get(figure, figure)


def title(body: Mapping[str, Any]) -> str:
    """The title of the page."""
    return f"{plural(len(body['methods']), 'method')} by {body['rewards'][0]}"


def facts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The setup of the comparison."""
    s = body["settings"]
    return [
        ("start", str(s["model"])),
        ("held-out prompts", number(body["prompts"])),
        (
            "answers",
            f"{s['samples']} per prompt, at most {s['sample_tokens']} tokens, temperature {s['temperature']:g}",
        ),
        ("seeds", ", ".join(map(str, body["seeds"]))),
        ("trained for", duration(_seconds(body))),
    ]


def findings(body: Mapping[str, Any]) -> list[str]:
    """The findings in sentences, the most important one first."""
    sentences = [_best(body)]
    if len(body["seeds"]) < 2:
        sentences.append("There is only one seed, so the variation between seeds is unknown.")
    for m in body["methods"]:
        sentences += [_overoptimisation(m, t, body["rewards"][0]) for t in m["turned"]]
    without_snapshot = [m["label"] for m in body["methods"] if not m["judged"]["seeds"]]
    if without_snapshot:
        sentences.append(f"No snapshot within the KL budget: {', '.join(without_snapshot)}.")
    if any(m["kl_is_bound"] for m in body["methods"]):
        sentences.append("The KL of best-of-n is not measured but given as its upper bound, log n minus (n - 1)/n.")
    return sentences


def _best(body: Mapping[str, Any]) -> str:
    """The best method at the highest KL that half of the methods reach with every seed, and whether the first two can
    be told apart: by their paired difference (same seed, same prompt), not by two intervals."""
    half = max(2, len(body["methods"]) / 2)
    complete = {
        level: [(m, row) for m in body["methods"] for row in m["matched"] if _all_reach(row, level)]
        for level in body["matched_kl"]
    }
    level = max((k for k, rows in complete.items() if len(rows) >= half), default=None)
    if level is None:
        return "Too few methods reach a common KL with every seed, so they cannot be ranked."
    (first, a), (second, b) = sorted(complete[level], key=lambda pair: -pair[1]["value"])[:2]
    best = f"At a KL of {number(level, 3)} nats, {first['label']} has the highest {body['rewards'][0]}, "
    best += f"{_with_interval(a)}, ahead of {second['label']}, {_with_interval(b)}."
    return best + _separation(difference(body, level, first["name"], second["name"]))


def difference(body: Mapping[str, Any], level: float, ours: str, theirs: str) -> Mapping[str, Any] | None:
    """One method's reward minus another's at a KL, paired; None if unknown."""
    for row in body["differences"]:
        if row["kl"] == level and (row["ours"], row["theirs"]) == (ours, theirs):
            return row
        if row["kl"] == level and (row["ours"], row["theirs"]) == (theirs, ours):
            ends = [None if row[end] is None else -row[end] for end in ("high", "low")]
            return {**row, "ours": ours, "theirs": theirs, "value": -row["value"], "low": ends[0], "high": ends[1]}
    return None


def _separation(row: Mapping[str, Any] | None) -> str:
    if row is None or row["low"] is None:
        return ""
    can = "can" if row["low"] > 0 or row["high"] < 0 else "cannot"
    return f" Their difference on the same prompts is {_with_interval(row)}, so they {can} be told apart."


def _all_reach(row: Mapping[str, Any], level: float) -> bool:
    return row["kl"] == level and row["reached"] > 0 and row["reached"] == row["of"]


def _with_interval(row: Mapping[str, Any]) -> str:
    ends = interval(row["low"], row["high"])
    return number(row["value"]) + (f" {ends}" if ends else "")


def _overoptimisation(method: Mapping[str, Any], turned: Mapping[str, Any], chief: str) -> str:
    (c0, o0), (c1, o1) = turned["before"], turned["after"]
    return (
        f"{method['label']} was over-optimised: after its best point {turned['reward']} still rose "
        f"({number(o0)} to {number(o1)}) while {chief} fell ({number(c0)} to {number(c1)})."
    )


def table(body: Mapping[str, Any]) -> Table:
    """Every method at its judged snapshot, the start first."""
    rewards = body["rewards"]
    columns = ["method", "step", rewards[0], "gain", "KL, nats", "wins against the start", *rewards[1:]]
    columns += ["tokens", "without EOS"]
    start = {"label": "the start", "judged": body["start"], "kl_is_bound": False}
    return {"columns": columns, "rows": [_row(m, rewards) for m in (start, *body["methods"])]}


def _row(method: Mapping[str, Any], rewards: Sequence[str]) -> list[Cell]:
    f = method["judged"]
    if not f["seeds"]:
        return [(method["label"], "no snapshot within the KL budget")] + [(NOTHING, "")] * (6 + len(rewards))
    at_start = method["label"] == "the start"
    steps = sorted(set(f["steps"]))
    kl = ("\N{LESS-THAN OR EQUAL TO} " if method["kl_is_bound"] else "") + number(f["kl"]["value"])
    cells = [(method["label"], ""), (_span(steps), ""), _cell(f["rewards"][rewards[0]])]
    cells += [("", "")] if at_start else [(signed(f["gain"]["value"]), interval(f["gain"]["low"], f["gain"]["high"]))]
    cells += [(kl, interval(f["kl"]["low"], f["kl"]["high"]) if not method["kl_is_bound"] else "")]
    cells += [("", "")] if at_start else [share_cell(f["win"])]
    return [*cells, *(_cell(f["rewards"][n]) for n in rewards[1:]), _cell(f["tokens"]), share_cell(f["unended"])]


def matched(body: Mapping[str, Any]) -> Table:
    """The reward of every method at each KL, interpolated linearly between its snapshots."""
    columns = ["method", *(f"KL {number(level, 3)}" for level in body["matched_kl"])]
    return {"columns": columns, "rows": [[(m["label"], ""), *map(_reached, m["matched"])] for m in body["methods"]]}


def _reached(row: Mapping[str, Any]) -> Cell:
    if not row["reached"]:
        return "not reached", ""
    if row["value"] is None:
        return "not comparable", f"{row['reached']} of {row['of']} seeds reach it"
    return number(row["value"]), interval(row["low"], row["high"])


def labels(body: Mapping[str, Any]) -> dict[str, str]:
    """The display name of every policy, the start first."""
    return {"start": "the start", **{m["name"]: m["label"] for m in body["methods"]}}


def wins(body: Mapping[str, Any]) -> Table:
    """Row against column: how often the row's answer has the higher true reward."""
    return table_of_wins(labels(body), body["wins"])


def table_of_wins(labels: Mapping[str, str], wins: Sequence[Mapping[str, Any]]) -> Table:
    """Row against column: how often the row's answer wins."""
    by_pair = {(w["ours"], w["theirs"]): w for w in wins if w["value"] is not None}
    names = [n for n in labels if any(n in pair for pair in by_pair)]
    rows = [
        [(labels[a], ""), *(share_cell(by_pair[a, b]) if (a, b) in by_pair else ("", "") for b in names)] for a in names
    ]
    return {"columns": ["", *(labels[b] for b in names)], "rows": rows}


def costs(body: Mapping[str, Any]) -> Table:
    """Seconds and tokens up to the judged snapshot, with the stages a method needs."""
    columns = [
        "method",
        "built on",
        "seconds",
        "tokens trained on",
        "tokens generated",
        "drawn per answer",
    ]
    rows = []
    for m in body["methods"]:
        f = m["judged"]
        figures = ("seconds", "trained_tokens", "generated_tokens", "drawn_per_answer")
        cells = [_plain(f[k]) for k in figures] if f["seeds"] else [(NOTHING, "")] * len(figures)
        rows.append([(m["label"], ""), (", ".join(m["needs"]), ""), *cells])
    return {"columns": columns, "rows": rows}


def per_seed(body: Mapping[str, Any]) -> Table:
    """Every seed's last snapshot with the interval over prompts."""
    columns = ["method", "seed", "step", body["rewards"][0], "gain", "KL, nats", "wins against the start"]
    rows = []
    for m in body["methods"]:
        last = {p["seed"]: p for p in m["points"]}
        for seed, p in last.items():
            kl = number(p["kl"]["mean"]) + (f" \N{PLUS-MINUS SIGN} {number(p['kl_se'], 2)}" if p["kl_se"] else "")
            gain = (signed(p["gain"]["value"]), interval(p["gain"]["low"], p["gain"]["high"]))
            reward = number(p["rewards"][body["rewards"][0]]["mean"])
            rows.append(
                [
                    (m["label"], ""),
                    (str(seed), ""),
                    (number(p["step"]), ""),
                    (reward, ""),
                    gain,
                    (kl, ""),
                    share_cell(p["win"]),
                ]
            )
    return {"columns": columns, "rows": rows}


def samples(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each shown prompt, every policy's first answer and its rewards."""
    entries = []
    for entry in body["samples"]:
        answers = [
            {
                "label": a["label"],
                "text": a["text"],
                "note": ", ".join(f"{n} {number(v, 3)}" for n, v in a["rewards"].items())
                + f"; {plural(a['tokens'], 'token')}"
                + (", cut off" if a["unended"] else ""),
            }
            for a in entry["answers"]
        ]
        entries.append({"prompt": entry["prompt"], "answers": answers})
    return entries


def runs(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every run with its folder and state."""
    return [(name, f"{r['folder']} ({r['state']})") for name, r in body["runs"].items()]


def environment(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions and hardware."""
    hardware = body["hardware"]
    chosen = [(k, str(hardware[k])) for k in ("cpu", "cpus", "platform") if hardware.get(k)]
    return [*((k, str(v)) for k, v in body["versions"].items()), *chosen]


def settings(body: Mapping[str, Any]) -> str:
    """The settings as YAML."""
    import yaml

    return yaml.safe_dump(body["settings"], sort_keys=False, allow_unicode=True)


def _seconds(body: Mapping[str, Any]) -> float:
    """Training seconds summed over methods and seeds; shared stages count for each method that needs them."""
    return sum(max((p["cost"]["seconds"] for p in m["points"]), default=0.0) for m in body["methods"])


def _cell(figure: Mapping[str, Any]) -> Cell:
    return number(figure["value"]), interval(figure["low"], figure["high"])


def _plain(figure: Mapping[str, Any]) -> Cell:
    value = figure["value"]
    return number(round(value) if value >= 100 else round(value, 1)), ""


def share_cell(figure: Mapping[str, Any]) -> Cell:
    """A share in percent with its interval."""
    ends = "" if figure["low"] is None else f"[{_percent(figure['low'])}, {_percent(figure['high'])}]"
    return _percent(figure["value"]), ends


def _percent(value: float) -> str:
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"


def _span(steps: Sequence[int]) -> str:
    return number(steps[0]) if len(steps) == 1 else f"{number(steps[0])} to {number(steps[-1])}"
