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
_TELLING = 5
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
    own, twins = ([row for row in complete if row[0]["twin"] is twin] for twin in (False, True))
    labels = config.mode == "label"
    body: dict[str, Any] = {
        "title": "Labels under principles" if labels else "Revisions under principles",
        "subtitle": f"{config.model}, {config.principles}",
        "facts": [["prompts", str(len(own))], ["pairs", str(pairs)], ["principles", str(len(principles.principles))]],
        "mode": config.mode,
        "pairs": pairs,
        "rule": 0.0,
        "differences": [],
        "findings": [f"{plural(pairs, 'pair')} from {plural(len(own), 'prompt')}."],
    }
    if labels:
        return body | _of_labels(principles, own, body["findings"])
    body["facts"] += [["twins", str(len(twins))], ["rounds", str(config.rounds)]]
    return body | _of_revisions(principles, own, twins, body["findings"])


def _of_revisions(
    principles: PrinciplesConfig, own: Sequence[Sequence[Row]], twins: Sequence[Sequence[Row]], findings: list[str]
) -> dict[str, Any]:
    first, last = [_first(row) for row in own], [_last(row) for row in own]
    figures = _lengths(own, findings) + _scores(own) + _refused(principles, own, twins, findings)
    lines, lists = [], []
    for p in principles.principles:
        steps = [(k, step) for k, row in enumerate(own) for step in row[1:] if step["principle"] == p.id]
        lines.append(
            {"name": p.id} | _share(steps, lambda s: not s[1]["why"], lambda s: s[0]) | {"sampled": len(steps)}
        )
        if p.checked:
            before, after = ([bool(find_violations(p, text)) for text in texts] for texts in (first, last))
            cells = [_cell(_share(list(enumerate(hits)), lambda h: h[1], lambda h: h[0])) for hits in (before, after)]
            lists.append([p.id, *cells])
            findings.append(f"{p.id}: {sum(before)} of {len(before)} answers break its word lists, {sum(after)} after.")
    _coverage(lines, findings)
    why = Counter(step["why"] or "revised" for row in own for step in row[1:])
    cut = sum(step["ends"].count("length") for row in own for step in row[1:])
    if cut:
        findings.append(f"{plural(cut, 'candidate')} for a revision ended at the token limit.")
    tables = [
        {
            "title": "Steps",
            "words": "The outcome of each step: one answer under one principle.",
            "columns": ["outcome", "steps"],
            "rows": [[name, str(n)] for name, n in sorted(why.items())],
        }
    ]
    if lists:
        words = "Share of answers that break them, with 95% intervals over prompts. The revisions used the same lists."
        columns = ["principle", "answers", "after the last revision"]
        tables.append({"title": "Word lists", "words": words, "columns": columns, "rows": lists})
    return {"unit": "share of its steps that revised", "lines": lines, "figures": figures, "tables": tables} | {
        "figures_words": "Refusals are answers that begin with one of the phrases in the settings. Intervals are 95% "
        "over prompts."
    }


def _of_labels(principles: PrinciplesConfig, own: Sequence[Sequence[Row]], findings: list[str]) -> dict[str, Any]:
    rows = [(k, row[0], row[1]) for k, row in enumerate(own)]
    known = [entry for entry in rows if entry[2]["p"] is not None]
    lines = []
    for p in principles.principles:
        its = [entry for entry in rows if entry[2]["principle"] == p.id]
        lines.append(
            {"name": p.id} | _share(its, lambda e: e[2]["p"] is not None, lambda e: e[0]) | {"sampled": len(its)}
        )
    _coverage(lines, findings)
    for why, n in sorted(Counter(entry[2]["why"] for entry in rows if entry[2]["p"] is None).items()):
        findings.append(f"{plural(n, 'pair')} without a label: {why}.")
    figures = []
    if known:
        by_place = [e[2]["p_shown_first"] - e[2]["p_shown_second"] for e in known]
        figures.append({"name": "Probability of an answer shown first less shown second"} | _mean(by_place))
        sure = [abs(e[2]["p"] - 0.5) for e in known]
        figures.append({"name": "Distance of the labels from one half"} | _mean(sure))
        longer = [
            float(e[2]["p"] > 0.5) if len(e[1]["answers"][0]) > len(e[1]["answers"][1]) else float(e[2]["p"] < 0.5)
            for e in known
            if len(e[1]["answers"][0]) != len(e[1]["answers"][1]) and e[2]["p"] != 0.5
        ]
        if longer:
            hit = _share(list(enumerate(longer)), lambda h: h[1], lambda h: h[0])
            figures.append({"name": "Share of labels for the longer answer"} | hit)
        gaps = [(e, _gap(principles, e)) for e in known]
        right = [(e[2]["p"] > 0.5) == (gap > 0) for e, gap in gaps if gap and e[2]["p"] != 0.5]
        if right:
            hit = _share(list(enumerate(right)), lambda h: h[1], lambda h: h[0])
            figures.append({"name": "Share of labels that agree with the principle's word lists"} | hit)
    words = "Intervals are 95% over prompts."
    return {"unit": "share of its pairs with a label", "lines": lines, "figures": figures, "figures_words": words}


def _gap(principles: PrinciplesConfig, entry: tuple[int, Row, Row]) -> int:
    """Violations of the principle's word lists in the second answer less those in the first."""
    principle = next(p for p in principles.principles if p.id == entry[2]["principle"])
    one, two = entry[1]["answers"]
    return count_violations([principle], two) - count_violations([principle], one)


def _lengths(own: Sequence[Sequence[Row]], findings: list[str]) -> list[dict[str, Any]]:
    """Lengths of revisions in characters, compared with the answers that they replace."""
    both = [(len(_first(row)), len(_last(row))) for row in own if any(not step["why"] for step in row[1:])]
    if not both:
        return []
    known = _mean([after - before for before, after in both])
    longer = _share(list(enumerate(both)), lambda b: b[1][1] > b[1][0], lambda b: b[0])
    before, after = fmean(b for b, _ in both), fmean(a for _, a in both)
    clear = known["low"] is not None and known["high"] is not None and known["low"] * known["high"] > 0
    if before and clear and not 1 / _LONGER <= after / before <= _LONGER:
        findings.append(
            f"Revisions are {after / before:.2f} times as long as answers. Training on these pairs can teach length."
        )
    gap = {"name": "Characters, revision less answer", **known}
    return [gap, {"name": "Share of revisions that are longer"} | longer]


def _scores(own: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """The matched score of the last revisions less that of the first answers."""
    last = [next((step for step in reversed(row[1:]) if not step["why"]), {}) for row in own]
    gaps = [step["score_gap"] for step in last if "score_gap" in step]
    return [{"name": "Matched score, revision less answer"} | _mean(gaps)] if gaps else []


def _refused(
    principles: PrinciplesConfig, own: Sequence[Sequence[Row]], twins: Sequence[Sequence[Row]], findings: list[str]
) -> list[dict[str, Any]]:
    """Refusals before and after revision, for prompts and for their harmless twins."""
    figures = []
    for rows, whose in ((own, "prompts"), (twins, "benign twins")):
        for text, when in ((_first, "answers"), (_last, "after revision")):
            if rows:
                hits = [(k, is_refusal(text(row), principles.refusals)) for k, row in enumerate(rows)]
                figures.append({"name": f"Refusals, {whose}: {when}"} | _share(hits, lambda h: h[1], lambda h: h[0]))
    if twins:
        before, after = (sum(is_refusal(t(row), principles.refusals) for row in twins) for t in (_first, _last))
        findings.append(f"Benign twins: {before} of {len(twins)} answers refuse, {after} after revision.")
    return figures


def _coverage(lines: Sequence[dict[str, Any]], findings: list[str]) -> None:
    few = [line for line in lines if line["sampled"] < _TELLING]
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
    return _plain(share(clustered([prompt(r) for r in rows], [float(bool(hit(r))) for r in rows])))


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """A mean over prompts, with one value per prompt."""
    known = mean(clustered(range(len(values)), values))
    low, high = known.ends if known.prompts > 1 else (None, None)
    return {"value": known.mean, "low": low, "high": high}


def _plain(known: Interval) -> dict[str, Any]:
    return {"value": known.value, "low": known.low, "high": known.high}


def _cell(figure: dict[str, Any]) -> str:
    return f"{number(figure['value'], 3)} {interval(figure['low'], figure['high'])}".rstrip()
