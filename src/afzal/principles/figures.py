"""The report on pairs made from principles: coverage, lengths, refusals, and skipped prompts with the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from afzal.config.revise import PrinciplesConfig, ReviseConfig
from afzal.principles.word_lists import count_violations, find_violations, is_refusal
from afzal.runs.stage import Row
from afzal.stats.intervals import Interval, clustered, mean, share
from afzal.text import interval, number, plural

_LONGER = 1.2
"""Ratio of mean lengths above which a report warns."""
_FEWEST_ROWS = 5
"""Rows per principle below which a report warns."""


def report_body(
    config: ReviseConfig,
    principles: PrinciplesConfig,
    answers: Sequence[Row],
    steps: Sequence[Sequence[Row]],
    pairs: int,
) -> dict[str, Any]:
    """The results of a run as plain values, for :func:`afzal.report.write_board`.

    Args:
        answers, steps: the rows of the stages; ``steps`` has one list per round, or the labels.
        pairs: number of pairs written.
    """
    complete = list(zip(*[answers, *steps], strict=True))
    prompts, twins = ([row for row in complete if row[0]["twin"] is twin] for twin in (False, True))
    labels = config.mode == "label"
    body: dict[str, Any] = {
        "title": "Labels under principles" if labels else "Revisions under principles",
        "subtitle": f"{config.model}, {config.principles}",
        "facts": [
            ["prompts", str(len(prompts))],
            ["pairs", str(pairs)],
            ["principles", str(len(principles.principles))],
        ],
        "mode": config.mode,
        "pairs": pairs,
        "rule": 0.0,
        "differences": [],
        "findings": [f"{plural(pairs, 'pair')} from {plural(len(prompts), 'prompt')}."],
    }
    if labels:
        return body | _label_body(principles, prompts, body["findings"])
    body["facts"] += [["twins", str(len(twins))], ["rounds", str(config.rounds)]]
    return body | _revision_body(principles, prompts, twins, body["findings"])


def _revision_body(
    principles: PrinciplesConfig, rows: Sequence[Sequence[Row]], twins: Sequence[Sequence[Row]], findings: list[str]
) -> dict[str, Any]:
    first, last = [_first(row) for row in rows], [_last(row) for row in rows]
    figures = _lengths(rows, findings) + _scores(rows) + _refusal_figures(principles, rows, twins, findings)
    lines, word_list_rows = [], []
    for p in principles.principles:
        steps = [(k, step) for k, row in enumerate(rows) for step in row[1:] if step["principle"] == p.id]
        lines.append(
            {"name": p.id} | _share(steps, lambda s: not s[1]["why"], lambda s: s[0]) | {"sampled": len(steps)}
        )
        if p.checked:
            before, after = ([bool(find_violations(p, text)) for text in texts] for texts in (first, last))
            cells = [_cell(_share(list(enumerate(hits)), lambda h: h[1], lambda h: h[0])) for hits in (before, after)]
            word_list_rows.append([p.id, *cells])
            findings.append(f"{p.id}: {sum(before)} of {len(before)} answers break its word lists, {sum(after)} after.")
    _coverage(lines, findings)
    outcomes = Counter(step["why"] or "revised" for row in rows for step in row[1:])
    n_cut = sum(step["ends"].count("length") for row in rows for step in row[1:])
    if n_cut:
        findings.append(f"{plural(n_cut, 'candidate')} for a revision ended at the token limit.")
    tables = [
        {
            "title": "Steps",
            "words": "The outcome of each step: one answer under one principle.",
            "columns": ["outcome", "steps"],
            "rows": [[name, str(n)] for name, n in sorted(outcomes.items())],
        }
    ]
    if word_list_rows:
        text = "Share of answers that break them, with 95% intervals over prompts. The revisions used the same lists."
        columns = ["principle", "answers", "after the last revision"]
        tables.append({"title": "Word lists", "words": text, "columns": columns, "rows": word_list_rows})
    return {"unit": "share of its steps that revised", "lines": lines, "figures": figures, "tables": tables} | {
        "figures_words": "Refusals are answers that begin with one of the phrases in the settings. Intervals are 95% "
        "over prompts."
    }


def _label_body(principles: PrinciplesConfig, prompts: Sequence[Sequence[Row]], findings: list[str]) -> dict[str, Any]:
    rows = [(k, row[0], row[1]) for k, row in enumerate(prompts)]
    labelled = [entry for entry in rows if entry[2]["p"] is not None]
    lines = []
    for p in principles.principles:
        entries = [entry for entry in rows if entry[2]["principle"] == p.id]
        lines.append(
            {"name": p.id}
            | _share(entries, lambda e: e[2]["p"] is not None, lambda e: e[0])
            | {"sampled": len(entries)}
        )
    _coverage(lines, findings)
    for why, n in sorted(Counter(entry[2]["why"] for entry in rows if entry[2]["p"] is None).items()):
        findings.append(f"{plural(n, 'pair')} without a label: {why}.")
    figures = []
    if labelled:
        by_place = [e[2]["p_shown_first"] - e[2]["p_shown_second"] for e in labelled]
        figures.append({"name": "Probability of an answer shown first less shown second"} | _mean(by_place))
        distances = [abs(e[2]["p"] - 0.5) for e in labelled]
        figures.append({"name": "Distance of the labels from one half"} | _mean(distances))
        longer = [
            float(e[2]["p"] > 0.5) if len(e[1]["answers"][0]) > len(e[1]["answers"][1]) else float(e[2]["p"] < 0.5)
            for e in labelled
            if len(e[1]["answers"][0]) != len(e[1]["answers"][1]) and e[2]["p"] != 0.5
        ]
        if longer:
            share_cell = _share(list(enumerate(longer)), lambda h: h[1], lambda h: h[0])
            figures.append({"name": "Share of labels for the longer answer"} | share_cell)
        gaps = [(e, _gap(principles, e)) for e in labelled]
        agreements = [(e[2]["p"] > 0.5) == (gap > 0) for e, gap in gaps if gap and e[2]["p"] != 0.5]
        if agreements:
            share_cell = _share(list(enumerate(agreements)), lambda h: h[1], lambda h: h[0])
            figures.append({"name": "Share of labels that agree with the principle's word lists"} | share_cell)
    text = "Intervals are 95% over prompts."
    return {"unit": "share of its pairs with a label", "lines": lines, "figures": figures, "figures_words": text}


def _gap(principles: PrinciplesConfig, entry: tuple[int, Row, Row]) -> int:
    """Violations of the principle's word lists in the second answer less those in the first."""
    principle = next(p for p in principles.principles if p.id == entry[2]["principle"])
    first, second = entry[1]["answers"]
    return count_violations([principle], second) - count_violations([principle], first)


def _lengths(rows: Sequence[Sequence[Row]], findings: list[str]) -> list[dict[str, Any]]:
    """Lengths of revisions in characters, compared with the answers that they replace."""
    lengths = [(len(_first(row)), len(_last(row))) for row in rows if any(not step["why"] for step in row[1:])]
    if not lengths:
        return []
    change = _mean([after - before for before, after in lengths])
    longer = _share(list(enumerate(lengths)), lambda b: b[1][1] > b[1][0], lambda b: b[0])
    before, after = fmean(b for b, _ in lengths), fmean(a for _, a in lengths)
    is_clear = change["low"] is not None and change["high"] is not None and change["low"] * change["high"] > 0
    if before and is_clear and not 1 / _LONGER <= after / before <= _LONGER:
        findings.append(
            f"Revisions are {after / before:.2f} times as long as answers. Training on these pairs can teach length."
        )
    gap = {"name": "Characters, revision less answer", **change}
    return [gap, {"name": "Share of revisions that are longer"} | longer]


def _scores(rows: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """The matched score of the last revisions less that of the first answers."""
    last = [next((step for step in reversed(row[1:]) if not step["why"]), {}) for row in rows]
    gaps = [step["score_gap"] for step in last if "score_gap" in step]
    return [{"name": "Matched score, revision less answer"} | _mean(gaps)] if gaps else []


def _refusal_figures(
    principles: PrinciplesConfig,
    prompts: Sequence[Sequence[Row]],
    twins: Sequence[Sequence[Row]],
    findings: list[str],
) -> list[dict[str, Any]]:
    """Refusals before and after revision, for prompts and for their harmless twins."""
    figures = []
    for rows, group in ((prompts, "prompts"), (twins, "benign twins")):
        for text, stage in ((_first, "answers"), (_last, "after revision")):
            if rows:
                hits = [(k, is_refusal(text(row), principles.refusals)) for k, row in enumerate(rows)]
                figures.append({"name": f"Refusals, {group}: {stage}"} | _share(hits, lambda h: h[1], lambda h: h[0]))
    if twins:
        before, after = (sum(is_refusal(t(row), principles.refusals) for row in twins) for t in (_first, _last))
        findings.append(f"Benign twins: {before} of {len(twins)} answers refuse, {after} after revision.")
    return figures


def _coverage(lines: Sequence[dict[str, Any]], findings: list[str]) -> None:
    few = [line for line in lines if line["sampled"] < _FEWEST_ROWS]
    if few:
        names = ", ".join(f"{line['name']} ({line['sampled']})" for line in few)
        findings.append(f"Principles that were hardly sampled: {names}.")


def _first(row: Sequence[Row]) -> str:
    return row[0]["answers"][0]


def _last(row: Sequence[Row]) -> str:
    """The answer after the last step."""
    return next((step["revision"] for step in reversed(row[1:]) if not step["why"]), _first(row))


def _share(rows: Sequence[Any], hit: Callable[[Any], Any], prompt: Callable[[Any], Any]) -> dict[str, Any]:
    if not rows:
        return {"value": None, "low": None, "high": None}
    return _as_figure(share(clustered([prompt(r) for r in rows], [float(bool(hit(r))) for r in rows])))


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """A mean over prompts, with one value per prompt."""
    estimate = mean(clustered(range(len(values)), values))
    low, high = estimate.ends if estimate.prompts > 1 else (None, None)
    return {"value": estimate.mean, "low": low, "high": high}


def _as_figure(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _cell(figure: dict[str, Any]) -> str:
    return f"{number(figure['value'], 3)} {interval(figure['low'], figure['high'])}".rstrip()
