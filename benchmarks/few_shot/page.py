"""The page: regret against the number of target labels, with bands over seeds, and the findings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from afzal.report import svg
from afzal.report.board import table_is_wide
from afzal.report.template import rendered
from afzal.runs import atomic_write
from afzal.stats.intervals import Interval, over_seeds
from benchmarks.few_shot import world as w
from benchmarks.few_shot.seeds import METHODS

_COLOURS = {"scratch": svg.OTHER, "fixed": svg.REJECTED, "annealed": svg.TRAIN, "meta": svg.CHOSEN}
_COLOURS |= {"prompt": svg.HELD_OUT, "context": svg.OPTIMUM}
_SHORT = {"scratch": "scratch", "fixed": "fixed", "annealed": "annealed", "meta": "meta", "prompt": "prompt"}
_SHORT |= {"context": "in context"}


def shares(results: Sequence[Mapping[str, Any]], name: str, at: int) -> list[float]:
    """Regret as a share of the reference's, by seed: 1 is no training, 0 is optimal."""
    return [r["regret"][name][at] / r["start"] for r in results]


def figures(results: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> dict[str, Any]:
    """Mean share of the reference's regret over seeds, by learner and number of labels, with Student's t intervals; and
    paired differences from scratch and between the priors."""
    names = list(results[0]["regret"])
    table = {name: [_plain(over_seeds(shares(results, name, at))) for at in range(len(labels) + 1)] for name in names}
    pairs = [(name, "scratch") for name in names if name != "scratch"] + [("annealed", "fixed")]
    differences = {
        f"{a} - {b}": [_plain(over_seeds(_differences(results, a, b, at))) for at in range(1, len(labels) + 1)]
        for a, b in pairs
        if a in names and b in names
    }
    return {"labels": [0, *labels], "share_of_start_regret": table, "differences": differences}


def _differences(results: Sequence[Mapping[str, Any]], a: str, b: str, at: int) -> list[float]:
    return [x - y for x, y in zip(shares(results, a, at), shares(results, b, at), strict=True)]


def _plain(interval: Interval) -> dict[str, float | None]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def findings(f: Mapping[str, Any], seeds: int) -> list[str]:
    """The findings in sentences, with whether each expectation was met."""
    labels = f["labels"][1:]
    sure = lambda d: d["high"] is not None and d["high"] < 0  # noqa: E731
    sentences = []
    for name in ("annealed", "meta"):
        few = [k for k, d in zip(labels, f["differences"][f"{name} - scratch"], strict=True) if k <= 16 and sure(d)]
        wanted = [k for k in labels if k <= 16]
        state = "as expected" if few == wanted else "NOT at every number of labels"
        sentences.append(
            f"Ahead of scratch with up to 16 labels: {METHODS[name]} at {_list(few)} of {_list(wanted)} ({state})."
        )
    level = [k for k, d in zip(labels, f["differences"]["annealed - scratch"], strict=True) if not sure(d)]
    sentences.append(
        f"Scratch is level with annealed transfer, within the interval, at {_list(level)} labels."
        if level
        else f"Scratch is behind annealed transfer up to {labels[-1]} labels."
    )
    ahead = [k for k, d in zip(labels, f["differences"]["fixed - scratch"], strict=True) if sure(d)]
    caught_up = [k for k in labels if k > max(ahead, default=0)]
    then = f"; scratch has caught up at {caught_up[0]}" if ahead and caught_up else ""
    sentences.append(f"Transfer with a fixed prior is ahead of scratch at {_list(ahead)} labels{then}.")
    negative = _worse(f["differences"]["fixed - scratch"], labels)
    sentences.append(
        f"Negative transfer: with a fixed prior the adapter is worse than scratch at {_list(negative)} labels."
        if negative
        else "Negative transfer was not seen: nowhere is the fixed prior worse than scratch beyond the interval."
    )
    better = [k for k, d in zip(labels, f["differences"]["annealed - fixed"], strict=True) if sure(d)]
    costs = _worse(f["differences"]["annealed - fixed"], labels)
    if better:
        sentences.append(f"Annealing the prior lowers the regret against the fixed one at {_list(better)} labels.")
    if costs:
        sentences.append(f"Annealing the prior raises the regret against the fixed one at {_list(costs)} labels.")
    if not better and not costs:
        sentences.append("Annealing the prior makes no difference beyond the interval.")
    harmed = [METHODS[n] for n, row in f["share_of_start_regret"].items() if (row[1]["low"] or 0) > 1]
    if harmed:
        sentences.append(f"With {labels[0]} labels worse than no training at all: {', '.join(harmed)}.")
    sentences.append(f"Bands and intervals: 95% over {seeds} seeds, each with its own tasks, labels and adapters.")
    return sentences


def _worse(differences: Sequence[Mapping[str, float | None]], labels: Sequence[int]) -> list[int]:
    """Numbers of labels for which the interval of a difference in regret is above 0."""
    return [k for k, d in zip(labels, differences, strict=True) if d["low"] is not None and d["low"] > 0]


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if numbers else "none"


def chart(f: Mapping[str, Any], title: str) -> str:
    """Chart of the share of the reference's regret against the number of labels, on a log2 scale."""
    ticks = {math.log2(k) if k else math.log2(f["labels"][1]) - 1: str(k) for k in f["labels"]}
    xs = list(ticks)
    # bands over few seeds are wide, and some learners fail badly: neither must hide the others
    values = [d["value"] for row in f["share_of_start_regret"].values() for d in row]
    bottom, top = max(0.0, math.floor(10 * min(values)) / 10 - 0.1), min(1.25, 1.15 * max(values))
    lines = [
        svg.Series(
            METHODS[name],
            tuple((x, d["value"] if d["value"] <= top else None) for x, d in zip(xs, row, strict=True)),
            colour=_COLOURS[name],
            low=_ends(row, "low", bottom, top),
            high=_ends(row, "high", bottom, top),
            label=f"{_SHORT[name]} ",
        )
        for name, row in f["share_of_start_regret"].items()
    ]
    return svg.line_chart(
        lines,
        title=f"regret against labels, {title}",
        x_label="labels of the target task",
        y_label="regret / regret of the reference",
        rules=[svg.Rule(1.0, "no training")],
        x_ticks=ticks,
        y_range=(bottom, top),
        width=640,
        height=380,
    )


def _ends(row: Sequence[Mapping[str, Any]], end: str, bottom: float, top: float) -> tuple[float | None, ...]:
    """The ends of the intervals, clipped to the frame; empty for a learner whose mean leaves it."""
    if any(d["value"] > top for d in row):
        return ()
    return tuple(None if d[end] is None else min(max(d[end], bottom), top) for d in row)


def write(out: Path, results: Mapping[str, Sequence[Mapping[str, Any]]], labels: Sequence[int], about: str) -> Path:
    """Write ``few-shot.html`` and ``few-shot.json`` for all families, and a drawing of each: ``few-shot-NAME.svg``.

    Args:
        results: one per seed, by family name.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = {name: figures(each, labels) for name, each in results.items()}
    sentences = {name: findings(f, len(results[name])) for name, f in parts.items()}
    drawings = {name: chart(f, w.FAMILIES[name].words) for name, f in parts.items()}
    for name, drawing in drawings.items():
        atomic_write(out / f"few-shot-{name}.svg", svg.standalone(drawing))
    captions = (f"<figcaption>{w.FAMILIES[name].words}</figcaption>{drawing}" for name, drawing in drawings.items())
    page = rendered(
        "board.html.j2",
        title="Few-shot preferences",
        subtitle="exact regret on two families of enumerable languages",
        findings=[
            _heading(parts),
            *(
                f"{w.FAMILIES[n].words}: {line[0].lower()}{line[1:]}"
                for n, lines in sentences.items()
                for line in lines[:-1]
            ),
            sentences[next(iter(sentences))][-1],
        ],
        facts=_facts(results),
        drawing=Markup("".join(captions)),
        drawn_as="Regret against labels, with 95% bands over seeds; who leaves the frame has figures in the table",
        tables=[
            t | {"wide": table_is_wide(t)} for t in (*(_table(n, f) for n, f in parts.items()), _cost(results, about))
        ],
        texts=[],
        worst=[],
    )
    content = {"about": about} | {
        name: {"family": asdict(w.FAMILIES[name]), "findings": sentences[name], **f, "seeds": list(results[name])}
        for name, f in parts.items()
    }
    atomic_write(out / "few-shot.json", json.dumps(content, indent=1) + "\n")
    atomic_write(out / "few-shot.html", page)
    return out / "few-shot.html"


def _heading(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """One line that says where transfer does harm."""
    harmed = {name: _worse(f["differences"]["fixed - scratch"], f["labels"][1:]) for name, f in parts.items()}
    where = [f"{w.FAMILIES[n].words}, at {_list(ks)} labels" for n, ks in harmed.items() if ks]
    return f"Negative transfer under a fixed prior: {'; '.join(where) or 'not seen'}."


def _facts(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    by_family = [
        [
            w.FAMILIES[name].words,
            f"E[r] - {w.FAMILIES[name].beta:g} KL, regret of the reference "
            f"{_cell(_plain(over_seeds([r['start'] for r in each])))}, {len(each)} seeds",
        ]
        for name, each in results.items()
    ]
    return [*by_family, ["held-out prompts", str(w.JUDGED_ON)]]


def _table(name: str, f: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": f"Share of the reference's regret: {w.FAMILIES[name].words}",
        "words": "Mean over seeds and its 95% interval; 1 is no training, 0 is the optimum of the task.",
        "columns": ["learner", *(f"{k} labels" for k in f["labels"])],
        "rows": [[METHODS[n], *(_cell(d) for d in row)] for n, row in f["share_of_start_regret"].items()],
    }


def _cost(results: Mapping[str, Sequence[Mapping[str, Any]]], about: str) -> dict[str, Any]:
    every = [r for each in results.values() for r in each]
    seconds = {stage: sum(r["processor_seconds"].get(stage, 0.0) for r in every) for stage in _stages(every)}
    return {
        "title": "Cost",
        "words": about,
        "columns": ["stage", "processor seconds, all seeds"],
        "rows": [
            *([stage, f"{value:.0f}"] for stage, value in seconds.items()),
            ["all", f"{sum(seconds.values()):.0f}"],
        ],
    }


def _stages(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(stage for r in results for stage in r["processor_seconds"]))


def _cell(d: Mapping[str, float | None]) -> str:
    if d["low"] is None or d["high"] is None:
        return f"{d['value']:.2f}"
    return f"{d['value']:.2f} [{d['low']:.2f}, {d['high']:.2f}]"
