"""Scores of several annotators on the same answers: agreement on the scale of the data, and means.

Shapes: N units, R annotators. A unit is one answer on one axis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from afzal import text
from afzal.judge.annotators import HASTY, ONE_ANSWER
from afzal.judge.figures import finite, interval
from afzal.records import Item, Rating, prompt_key
from afzal.stats import agreement, ratings, resampling
from afzal.stats.intervals import Interval

ENOUGH = 20  # scores needed to judge a person's habits


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of units.

    Attributes:
        values: ``[N, R]``, NaN without a score; repeated questions are left out.
        units: item number, response and axis of each unit.
        prompts: of each unit; units of one prompt are not independent.
        repeats: for each annotator, (first score, score when asked again).
        seconds: for each annotator, as far as recorded.
    """

    values: np.ndarray
    units: tuple[tuple[int, int, str | None], ...]
    prompts: tuple[str, ...]
    annotators: tuple[str, ...]
    repeats: tuple[tuple[tuple[float, float], ...], ...]
    seconds: tuple[tuple[float, ...], ...]


def of_items(items: Sequence[Item]) -> Scores | None:
    """The scores of rows; those without a name belong to an annotator called ``votes``. None without any."""
    units: dict[tuple[int, int, str | None], int] = {}
    people: dict[str, int] = {}
    scores: dict[tuple[int, int], float] = {}
    repeats, seconds = defaultdict(list), defaultdict(list)
    for number, item in enumerate(items):
        for vote in item.votes:
            if not isinstance(vote, Rating) or vote.kind != "score":
                continue
            unit = units.setdefault((number, vote.response, vote.axis), len(units))
            person = people.setdefault(vote.annotator or "votes", len(people))
            if vote.seconds is not None:
                seconds[person].append(vote.seconds)
            if vote.weight == 0 and (unit, person) in scores:
                repeats[person].append((scores[unit, person], vote.value))
            else:
                scores[unit, person] = vote.value
    if not scores:
        return None
    values = np.full((len(units), len(people)), np.nan)
    values[tuple(np.array(list(scores)).T)] = list(scores.values())
    keys = [prompt_key(item) for item in items]
    prompts = tuple(keys[number] for number, _, _ in units)
    numbers = range(len(people))
    return Scores(
        values,
        tuple(units),
        prompts,
        tuple(people),
        tuple(tuple(repeats[k]) for k in numbers),
        tuple(tuple(seconds[k]) for k in numbers),
    )


def report(
    scores: Scores, source: str, items: Sequence[Item] = (), *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The report as plain values, for the page and for files.

    Args:
        items: the scored rows, for means by source.
    """
    scale = ratings.scale_of(scores.values)
    rest_sums = ratings.rest_sums(scores.values)
    parts = [ratings.alpha_sums(scores.values), rest_sums.sum(1), rest_sums.reshape(len(rest_sums), -1)]
    known = resampling.sums(np.concatenate(parts, 1), scores.prompts, resamples=resamples, seed=seed)
    people = [_person(scores, k, known) for k in range(len(scores.annotators))]
    per_unit = np.isfinite(scores.values).sum(1)
    several = int((per_unit >= 2).sum())
    figures = _figures(scores, scale, known) if several else []
    scale_words = scale if scale == "numbers" else f"{scale}, {_span(scores.values)}"
    facts = [
        ("annotators", f"{len(scores.annotators):,}"),
        ("scores", f"{int(per_unit.sum()):,}"),
        ("answers", f"{len(scores.units):,}"),
        ("answers with two scores or more", f"{several:,}"),
        ("groups of prompts", f"{len(set(scores.prompts)):,}"),
        ("scale", scale_words),
    ]
    findings = [_advice(scale, figures)]
    findings += [f"{line['name']}: {remark}" for line, remarks in people for remark in remarks]
    body = {
        "title": "Annotators",
        "subtitle": source,
        "unit": "correlation with the mean of the others",
        "rule": None,
        "kind": "scores",
        "scale": scale,
        "facts": facts,
        "findings": findings,
        "remarks": {line["name"]: remarks for line, remarks in people if remarks},
        "figures": figures,
        "figures_words": "Alpha is corrected for chance: 1 is perfect, 0 is chance level.",
        "lines": [line for line, _ in people],
        "differences": [],
    }
    return body | _by_source(scores, items, resamples=resamples, seed=seed)


def _by_source(scores: Scores, items: Sequence[Item], *, resamples: int, seed: int) -> dict[str, Any]:
    """The mean score by source, best first, with a table; empty for fewer than two named sources."""
    sources = [items[number].responses[response].source or "" for number, response, _ in scores.units] if items else []
    names = sorted({name for name in sources if name})
    if len(names) < 2 or any(axis is not None for *_, axis in scores.units):
        return {}
    means = np.nanmean(scores.values, 1)
    by_source = {}
    for name in names:
        members = [k for k, source in enumerate(sources) if source == name]
        sums = np.stack([np.ones(len(members)), means[members]], 1)
        known = resampling.sums(sums, [scores.prompts[k] for k in members], resamples=resamples, seed=seed)
        by_source[name] = {"answers": len(members), **interval(known.interval(lambda s: s[..., 1] / s[..., 0]))}
    order = sorted(by_source, key=lambda name: -by_source[name]["value"])
    rows = [[name, f"{by_source[name]['answers']:,}", _shown(by_source[name])] for name in order]
    words = "The mean of an answer's scores, with intervals over prompts. Compare models with: afzal leaderboard."
    table = {"title": "Mean score by source", "words": words, "columns": ["source", "answers", "mean"], "rows": rows}
    return {"by_source": {name: by_source[name] for name in order}, "tables": [table]}


def _shown(known: dict[str, Any]) -> str:
    return f"{text.number(known['value'], 3)} {text.interval(known['low'], known['high'])}".rstrip()


def _span(values: np.ndarray) -> str:
    return f"{np.nanmin(values):g} to {np.nanmax(values):g}"


def _advice(scale: ratings.Scale, figures: Sequence[dict[str, Any]]) -> str:
    if not figures:
        return "No answer was scored twice, so nothing is known about agreement."
    known = {figure["name"]: figure["value"] for figure in figures}
    if scale == "two values":
        return f"With two values the scores are classes: Krippendorff's alpha is {_short(known['alpha, nominal'])}."
    sentence = (
        f"The scores have an order and distances: alpha on an interval scale is {_short(known['alpha, interval'])}"
    )
    if "alpha, nominal" in known:
        sentence += f" (as unordered classes it would be {_short(known['alpha, nominal'])})"
    return sentence + ". Take means; Dawid-Skene would ignore the distances."


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _figures(scores: Scores, scale: ratings.Scale, known: resampling.Sums) -> list[dict[str, Any]]:
    values = scores.values
    alpha = known.interval(lambda s: ratings.alpha_of(s[..., :4]))
    by_name: dict[str, Interval | float] = {"alpha, interval": alpha}
    if scale != "numbers":
        counts, classes = ratings.class_counts(values)
        levels = ("ordinal", "nominal") if scale == "whole numbers" else ("nominal",)
        for level in levels:
            by_name[f"alpha, {level}"] = agreement.krippendorff(counts, level)
        if classes.min() < 0 < classes.max():
            signs, _ = ratings.class_counts(np.sign(values))
            by_name["alpha of the sign, nominal"] = agreement.krippendorff(signs, "nominal")
            by_name["Gwet's AC1 of the sign"] = agreement.gwet(signs)
        pairs = ratings.pairwise(values)
        by_name |= {"two scores equal": pairs.equal, "two scores within 1": pairs.within_one}
    by_name["one annotator with the mean of the others"] = known.interval(_with_others(ratings.correlation_of, 0))
    if (values[np.isfinite(values)] < 0).any():
        by_name["same sign as the mean of the others"] = known.interval(_with_others(ratings.same_sign_of, 0))
    by_name["standard deviation within an answer"] = ratings.spread(values)
    raters = float(np.isfinite(values).sum(1)[np.isfinite(values).sum(1) >= 2].mean())
    by_name[f"reliability of a mean of {raters:.3g}"] = ratings.reliability(alpha.value, raters)
    by_name |= _verdicts(scores)
    return [{"name": name, **_figure(known)} for name, known in by_name.items()]


def _with_others(figure: Callable[[np.ndarray], np.ndarray], part: int) -> Callable[[np.ndarray], np.ndarray]:
    """A figure of all annotators (part 0) or of annotator number ``part - 1``, from the sums of the report."""
    return lambda s: figure(s[..., 4 + 7 * part : 11 + 7 * part])


def _figure(known: Interval | float) -> dict[str, Any]:
    return interval(known) if isinstance(known, Interval) else {"value": finite(known), "low": None, "high": None}


def _verdicts(scores: Scores) -> dict[str, float]:
    """Figures of the preferences implied by the scores of two answers to one prompt; empty without such pairs."""
    by_question: dict[tuple[int, str | None], list[int]] = defaultdict(list)
    for unit, (number, _, axis) in enumerate(scores.units):
        by_question[number, axis].append(unit)
    pairs = [pair for units in by_question.values() for pair in combinations(units, 2)]
    if not pairs:
        return {}
    first, second = np.array(pairs).T
    gap = np.sign(scores.values[first] - scores.values[second])
    known = np.isfinite(gap)
    several = known.sum(1) >= 2
    top, bottom = np.where(known, gap, -2).max(1), np.where(known, gap, 2).min(1)
    if not several.any():
        return {}
    return {
        "ties among implied pairs": float((gap[known] == 0).mean()),
        "implied pairs on which all agree": float((top == bottom)[several].mean()),
        "implied pairs with opposite winners": float(((top == 1) & (bottom == -1))[several].mean()),
    }


def _person(scores: Scores, person: int, known: resampling.Sums) -> tuple[dict[str, Any], list[str]]:
    values = scores.values[:, person]
    values = values[np.isfinite(values)]
    part = person + 1
    with_others = known.interval(_with_others(ratings.correlation_of, part)) if known.total[4 + 7 * part] else None
    repeats, seconds = scores.repeats[person], scores.seconds[person]
    line = {
        "name": scores.annotators[person],
        **({"value": None, "low": None, "high": None} if with_others is None else interval(with_others)),
        "scores": len(values),
        "mean": float(values.mean()),
        "above_others": None
        if with_others is None
        else finite(known.interval(_with_others(ratings.above_of, part)).value),
        "consistent": sum(a == b for a, b in repeats) / len(repeats) if repeats else None,
        "seconds": float(np.median(seconds)) if seconds else None,
    }
    return line, _remarks(scores, values, with_others, line) if len(values) >= ENOUGH else []


def _remarks(scores: Scores, values: np.ndarray, correlation: Interval | None, line: dict[str, Any]) -> list[str]:
    remarks = []
    if correlation is not None and correlation.high is not None and correlation.high < 0:
        remarks.append(f"goes against the others (correlation {correlation.value:.2f}): reversed?")
    classes, times = np.unique(values, return_counts=True)
    share_of_all = (scores.values == classes[times.argmax()]).sum() / np.isfinite(scores.values).sum()
    if times.max() >= ONE_ANSWER * len(values) and share_of_all < times.max() / len(values) / 2:
        remarks.append(
            f"gives {classes[times.argmax()]:g} {times.max() / len(values):.0%} of the time, "
            f"everyone together {share_of_all:.0%}"
        )
    all_seconds = [s for seconds in scores.seconds for s in seconds]
    if line["seconds"] is not None and line["seconds"] < HASTY * float(np.median(all_seconds)):
        remarks.append(f"takes {line['seconds']:.1f} s; the median of all is {float(np.median(all_seconds)):.1f} s")
    return remarks


def as_items(items: Sequence[Item], scores: Scores) -> list[Item]:
    """The rows with one score per answer and axis: the mean of all, with weight 0 if theirs are all 0."""
    means = defaultdict(list)
    counted = np.isfinite(scores.values).sum(1)
    weighed = {
        (number, v.response, v.axis)
        for number, item in enumerate(items)
        for v in item.votes
        if isinstance(v, Rating) and v.weight > 0
    }
    for (number, response, axis), mean, n in zip(scores.units, np.nanmean(scores.values, 1), counted, strict=True):
        vote = Rating(response, float(mean), "score", annotator=f"mean of {n}", axis=axis)
        means[number].append(vote if (number, response, axis) in weighed else replace(vote, weight=0.0))
    other_votes = [[v for v in item.votes if not isinstance(v, Rating) or v.kind != "score"] for item in items]
    return [replace(item, votes=(*other_votes[k], *means[k])) for k, item in enumerate(items)]
