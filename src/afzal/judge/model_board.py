"""Leaderboards of models from verdicts: strengths, head-to-head records, and win rates at equal lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.judge import summary_text
from afzal.judge.figures import finite, interval, leader
from afzal.judge.verdicts import POINTS, Verdicts
from afzal.stats import bradley_terry as bt
from afzal.stats import judging
from afzal.text import plural, sign


@dataclass(frozen=True, slots=True, eq=False)
class ModelBoard:
    """Models by strength.

    Attributes:
        names: model names, by model number.
        board: the models' places; None if the verdicts give no finite strengths, which ``connection`` explains.
        wins, ties, losses: by model number.
        head_to_head: by two model numbers, the smaller first: wins of the first, wins of the second, ties.
        judges, items, prompts: their numbers.
        verdicts: number of verdicts that count; ``no_verdict`` is the number of those that name neither a winner nor
            a tie.
    """

    names: tuple[str, ...]
    board: bt.Board | None
    connection: bt.Connection
    wins: tuple[int, ...]
    ties: tuple[int, ...]
    losses: tuple[int, ...]
    head_to_head: Mapping[tuple[int, int], tuple[int, int, int]]
    judges: int
    items: int
    prompts: int
    verdicts: int
    no_verdict: int


def rank_models(verdicts: Verdicts, ties: bt.Ties = "half", *, resamples: int = 500, seed: int = 0) -> ModelBoard:
    """Strengths of the compared models, with intervals over prompts.

    Raises:
        AfzalError: fewer than two models, no verdict with a winner or a tie, or ``ties`` cannot be fitted.
    """
    counted = [v for v in verdicts.verdicts if v.outcome != "none"]
    names = sorted({name for v in counted for name in (v.first, v.second)})
    if len(names) < 2:
        read = plural(len(verdicts.verdicts), "verdict")
        raise AfzalError("a leaderboard needs two models", why=f"{read} of {plural(len(names), 'model')} were read")
    number = {name: k for k, name in enumerate(names)}
    first, second = [number[v.first] for v in counted], [number[v.second] for v in counted]
    points = [POINTS[v.outcome] for v in counted]
    games = bt.games(first, second, points, [v.prompt for v in counted], len(names))
    connection = bt.connection(games)
    board = _fitted(games, ties, resamples, seed) if connection.connected else None
    tally = {p: Counter[int]() for p in (1.0, 0.5, 0.0)}
    head_to_head: Counter[tuple[int, int, float]] = Counter()
    for i, j, p in zip(first, second, points, strict=True):
        head_to_head[(i, j, p) if i < j else (j, i, 1 - p)] += 1
    for (i, j, p), n in head_to_head.items():
        tally[p][i] += n
        tally[1 - p][j] += n
    pairs = sorted({(i, j) for i, j, _ in head_to_head})
    won, drawn, lost = (tuple(tally[p][k] for k in range(len(names))) for p in (1.0, 0.5, 0.0))
    return ModelBoard(
        tuple(names),
        board,
        connection,
        won,
        drawn,
        lost,
        {(i, j): (head_to_head[i, j, 1.0], head_to_head[i, j, 0.0], head_to_head[i, j, 0.5]) for i, j in pairs},
        judges=len({v.judge for v in counted}),
        items=len({v.item for v in counted}),
        prompts=len({v.prompt for v in counted}),
        verdicts=len(counted),
        no_verdict=len(verdicts.verdicts) - len(counted),
    )


def _fitted(played: bt.Games, ties: bt.Ties, resamples: int, seed: int) -> bt.Board:
    if ties != "half" and not (played.outcome == 0.5).any():
        raise AfzalError(
            "there are no ties to fit",
            where=f"--ties {ties}",
            why="every verdict names a winner, so half ties give the same strengths",
            remedy="omit the option",
        )
    try:
        return bt.leaderboard(played, ties, resamples=resamples, seed=seed)
    except ValueError as error:
        remedy = "--ties half" if ties != "half" else "more verdicts between models of similar strength"
        raise AfzalError("there are no strengths", where=f"--ties {ties}", why=str(error), remedy=remedy) from None


@dataclass(frozen=True, slots=True)
class LengthControlledRate:
    """One model against all others: number of pairs, and its win rate by their mean verdicts; None if lengths alone
    decide who won, so that nothing is known about equal lengths."""

    model: str
    pairs: int
    control: judging.LengthControl | None


def length_controlled_rates(verdicts: Verdicts, *, resamples: int = 500, seed: int = 0) -> list[LengthControlledRate]:
    """The win rate of each model at equal answer lengths, best first. Several judges' verdicts on one pair are averaged
    first. Models whose answers never differ in length from the others' are left out.

    Raises:
        AfzalError: the verdicts do not hold the lengths of the answers.
    """
    sides: dict[str, dict[str, tuple[list[float], float, str]]] = defaultdict(dict)
    for v in verdicts.verdicts:
        if v.lengths is None or v.outcome == "none":
            continue
        points, gap = POINTS[v.outcome], float(v.lengths[0] - v.lengths[1])
        for model, won, longer in ((v.first, points, gap), (v.second, 1 - points, -gap)):
            sides[model].setdefault(v.item, ([], longer, v.prompt))[0].append(won)
    if not sides:
        raise AfzalError(
            "the lengths of the answers are not known",
            where="--length-control",
            why="the file holds these verdicts without the answers",
            remedy="rows with the answers, such as rows.jsonl of afzal judge",
        )
    lines = []
    for model, rows in sides.items():
        scores, gaps, prompts = zip(*rows.values(), strict=True)
        means, longer = np.array([float(np.mean(s)) for s in scores]), np.array(gaps)
        if len(set(gaps)) > 1:
            control = judging.length_controlled(means, longer, prompts, resamples=resamples, seed=seed)
            lines.append(LengthControlledRate(model, len(rows), control))
    return sorted(lines, key=lambda line: -line.control.controlled.value if line.control else 1.0)


def length_controlled_as_plain(lines: Sequence[LengthControlledRate]) -> dict[str, Any]:
    """The win rates at equal lengths as plain values, with a table for the page."""
    plain, rows = [], []
    for line in lines:
        c = line.control
        if c is None:
            plain.append({"model": line.model, "pairs": line.pairs, "controlled": None})
            rows.append([line.model, f"{line.pairs:,}", "", "not known", "lengths alone decide who won"])
            continue
        known = {"raw": interval(c.raw), "controlled": interval(c.controlled), "slope": interval(c.slope)}
        fit_facts = {"deviation": c.deviation, "overlap": c.overlap, "extrapolated": c.extrapolated}
        plain.append({"model": line.model, "pairs": line.pairs, **known, **fit_facts})
        marked = "extrapolated" if c.extrapolated else f"{c.overlap:.0%}"
        rows.append(
            [line.model, f"{line.pairs:,}", *(summary_text.percent(known[k]) for k in ("raw", "controlled")), marked]
        )
    words = (
        "Each model against all others; at equal lengths by a logistic fit on the difference in length. If one side "
        "is longer in more than nine pairs of ten, the figure is extrapolated."
    )
    columns = ["model", "pairs", "win rate", "at equal lengths", "lengths overlap"]
    table = {"title": "Win rate at equal lengths", "words": words, "columns": columns, "rows": rows}
    return {"at_equal_lengths": plain, "tables": [table]}


def rank_correlation(board: ModelBoard, other: ModelBoard) -> dict[str, Any]:
    """Rank correlations between two leaderboards' strengths, over the models that they share; None if one ranks all of
    them as equal.

    Raises:
        AfzalError: one of them has no strengths, or they share fewer than two models.
    """
    from scipy.stats import kendalltau, spearmanr

    shared = [name for name in board.names if name in other.names]
    if board.board is None or other.board is None or len(shared) < 2:
        raise AfzalError(
            "the two leaderboards cannot be compared",
            where="--beside",
            why="both need strengths, and two models or more in common",
        )
    first, second = (
        [float(b.board.theta[b.names.index(name)]) for name in shared] for b in (board, other) if b.board is not None
    )
    if len(set(first)) == 1 or len(set(second)) == 1:  # a leaderboard on which all are equal ranks nothing
        return {"models": len(shared), "spearman": None, "kendall": None}
    figures: dict[str, Any] = {"spearman": spearmanr(first, second)[0], "kendall": kendalltau(first, second)[0]}
    return {"models": len(shared), **{name: finite(float(value)) for name, value in figures.items()}}


def models_as_plain(board: ModelBoard, ties: bt.Ties, source: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """A leaderboard of models as plain values, for pages and files; ``findings`` explain missing strengths.

    Args:
        notes: remarks on how the verdicts were read, which become findings.
    """
    names, lines, gaps = board.names, [], []
    record = lambda m: {"won": board.wins[m], "tied": board.ties[m], "lost": board.losses[m]}  # noqa: E731
    if board.board is None:
        order = sorted(range(len(names)), key=lambda m: (-share_of(board, m), names[m]))
        lines = [
            {"name": names[m], "value": None, "low": None, "high": None, "win_rate": share_of(board, m), **record(m)}
            for m in order
        ]
        findings = explain_missing_strengths(board)
    else:
        places = board.board.places
        for place in places:
            theta = place.theta
            ranks = {"rank": place.rank, "best_rank": place.best_rank, "worst_rank": place.worst_rank}
            figures = {"elo": round(place.elo, 1), "win_rate": place.win_rate, **record(place.model)}
            lines.append({"name": names[place.model], **interval(theta), **ranks, **figures})
        pairs = [(a.model, b.model) for k, a in enumerate(places) for b in places[k + 1 :]]
        for a, b in pairs:
            gaps.append({"first": names[a], "second": names[b], **interval(board.board.difference(a, b))})
        clear = sum(sign(gap) != 0 for gap in gaps)
        findings = [f"{leader(gaps)} {clear} of {len(gaps)} differences between two models exclude 0."]
        if board.board.unconnected:
            left_out = f"{board.board.unconnected} of the resamples had no finite strengths and are left out"
            findings.append(f"{left_out}: the intervals are too narrow at the far ends.")
    if board.no_verdict:
        findings.append(f"{board.no_verdict} verdicts name neither a winner nor a tie and are not counted.")
    findings += notes
    facts = {
        "models": _count(len(names)),
        "verdicts": _count(board.verdicts),
        "without a verdict": _count(board.no_verdict),
        "judges": _count(board.judges),
        "pairs of answers": _count(board.items),
        "prompts": _count(board.prompts),
        "ties": _TIES[ties],
    }
    header = {"title": "Leaderboard of models", "subtitle": source, "unit": "strength in nats", "rule": 0.0}
    pairings = [
        {"first": names[i], "second": names[j], **dict(zip(("won", "lost", "tied"), counts, strict=True))}
        for (i, j), counts in board.head_to_head.items()
    ]
    body = {**header, "findings": findings, "facts": list(facts.items()), "lines": lines, "differences": gaps}
    return body | {"met": pairings} | _fit(board)


def _fit(board: ModelBoard) -> dict[str, Any]:
    """The tie parameter and the log-likelihood of the fit; empty without a fit."""
    if board.board is None:
        return {}
    fit = board.board.fit
    return {"fit": {"tie": fit.tie, "log_likelihood": fit.log_likelihood}}


def explain_missing_strengths(board: ModelBoard) -> list[str]:
    """The reasons why the verdicts give no finite strengths, with the models' names."""
    linked, names = board.connection, board.names
    if len(linked.groups) > 1:
        groups = _some([_some([names[m] for m in group]) for group in linked.groups], between="; ")
        return [
            f"There is no common scale: {len(linked.groups)} groups of models were never compared with each other "
            f"({groups}). Compare models across the groups."
        ]
    reasons = []
    if linked.unbeaten:
        reasons.append(f"{_joined_names(board, linked.unbeaten)} never lost")
    if linked.winless:
        reasons.append(f"{_joined_names(board, linked.winless)} never won")
    if not reasons:
        parts = _some(["{" + _some([names[m] for m in part]) + "}" for part in linked.parts], between=" and ")
        reasons.append(f"of {parts} one side never won against the other")
    return [
        f"There are no finite strengths: {', and '.join(reasons)}. Win rates are shown below; more comparisons would "
        "give a number."
    ]


def share_of(board: ModelBoard, model: int) -> float:
    """Points of a model per comparison; a tie is half a point."""
    won, drawn, lost = board.wins[model], board.ties[model], board.losses[model]
    return (won + drawn / 2) / (won + drawn + lost)


_SHOWN = 6  # names in one list of a sentence

_TIES: dict[bt.Ties, str] = {
    "half": "half a win each way",
    "davidson": "Davidson 1970",
    "rao_kupper": "Rao and Kupper 1967",
}


def _count(n: int) -> str:
    return f"{n:,}"


def _joined_names(board: ModelBoard, models: Sequence[int]) -> str:
    names = [board.names[m] for m in models]
    return " and ".join(names) if len(names) <= _SHOWN else _some(names)


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and how many others there are: a list of hundreds hides what it is about."""
    more = len(names) - _SHOWN
    rest = [f"{more} more" if "and" in between else f"and {more} more"] if more > 0 else []
    return between.join([*names[:_SHOWN], *rest])
