"""Leaderboards from verdicts: of models by strength, of judges by accuracy and by what they do in both orders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.judge.plain import finite, interval
from afzal.judge.verdicts import CODES, POINTS, Verdict, Verdicts
from afzal.stats import bradley_terry as bt
from afzal.stats import judging
from afzal.stats.intervals import Interval


@dataclass(frozen=True, slots=True, eq=False)
class ModelBoard:
    """Models by strength.

    Attributes:
        names: of the models, by number.
        board: their places; None where the verdicts give no finite strengths, which ``connection`` explains.
        wins, ties, losses: by model number.
        judges, items, prompts: how many there are.
        verdicts: those that count; ``without`` is the number of those that do not, since they name no winner.
    """

    names: tuple[str, ...]
    board: bt.Board | None
    connection: bt.Connection
    wins: tuple[int, ...]
    ties: tuple[int, ...]
    losses: tuple[int, ...]
    judges: int
    items: int
    prompts: int
    verdicts: int
    without: int

    def separable(self) -> tuple[int, int]:
        """How many of the differences between two models exclude 0, and how many there are."""
        assert self.board is not None
        gaps = [self.board.difference(a, b) for a in range(len(self.names)) for b in range(a + 1, len(self.names))]
        clear = [g for g in gaps if g.low is not None and g.high is not None and (g.low > 0 or g.high < 0)]
        return len(clear), len(gaps)


def of_models(said: Verdicts, ties: bt.Ties = "half", *, resamples: int = 500, seed: int = 0) -> ModelBoard:
    """Strengths of the models that were compared, with intervals over prompts.

    Raises:
        AfzalError: fewer than two models, or no verdict with a winner or a tie.
    """
    counted = [v for v in said.verdicts if v.outcome != "none"]
    names = sorted({name for v in counted for name in (v.first, v.second)})
    if len(names) < 2:
        raise AfzalError(f"{len(names)} models make no leaderboard", why=f"{len(said.verdicts)} verdicts were read")
    number = {name: k for k, name in enumerate(names)}
    first, second = [number[v.first] for v in counted], [number[v.second] for v in counted]
    points = [POINTS[v.outcome] for v in counted]
    played = bt.games(first, second, points, [v.prompt for v in counted], len(names))
    connected = bt.connection(played)
    board = bt.leaderboard(played, ties, resamples=resamples, seed=seed) if connected.whole else None
    tally = {p: Counter[int]() for p in (1.0, 0.5, 0.0)}
    for i, j, p in zip(first, second, points, strict=True):
        tally[p][i] += 1
        tally[1 - p][j] += 1
    won, drawn, lost = (tuple(tally[p][k] for k in range(len(names))) for p in (1.0, 0.5, 0.0))
    return ModelBoard(
        tuple(names),
        board,
        connected,
        won,
        drawn,
        lost,
        judges=len({v.judge for v in counted}),
        items=len({v.item for v in counted}),
        prompts=len({v.prompt for v in counted}),
        verdicts=len(counted),
        without=len(said.verdicts) - len(counted),
    )


@dataclass(frozen=True, slots=True)
class JudgeLine:
    """One judge: share of games that name the truth (no verdict is wrong), its rank, and its two games.

    ``orders`` is None where no pair was judged in both orders.
    """

    name: str
    accuracy: Interval
    rank: int
    games: int
    no_verdict: int
    orders: judging.Orders | None


@dataclass(frozen=True, slots=True)
class JudgeBoard:
    """Judges by accuracy against known truth; ``separable`` of ``pairs`` paired differences exclude 0."""

    lines: tuple[JudgeLine, ...]
    items: int
    separable: int
    pairs: int


def of_judges(said: Verdicts, *, resamples: int = 2000, seed: int = 0) -> JudgeBoard:
    """Judges beside the truth, each pair of them on the same items.

    Raises:
        AfzalError: the file states no truth.
    """
    if not said.gold:
        raise AfzalError("a leaderboard of judges needs the truth of each item, and the file states none")
    items = sorted(said.gold)
    place = {item: k for k, item in enumerate(items)}
    games: dict[str, list[Verdict]] = defaultdict(list)
    for v in said.verdicts:
        if v.item in place:
            games[v.judge].append(v)
    names = list(games)
    table = np.full((len(items), len(names)), np.nan)
    for column, name in enumerate(names):
        right, played = np.zeros(len(items)), np.zeros(len(items))
        for v in games[name]:
            right[place[v.item]] += v.outcome == said.gold[v.item]
            played[place[v.item]] += 1
        table[:, column] = np.where(played > 0, right / np.maximum(played, 1), np.nan)
    prompts = {v.item: v.prompt for v in said.verdicts}
    means = judging.column_means(table, [prompts.get(item, item) for item in items], resamples=resamples, seed=seed)
    lines = []
    for rank, column in enumerate(np.argsort(-means.values, kind="stable").tolist(), start=1):
        own = games[names[column]]
        missing = sum(v.outcome == "none" for v in own)
        lines.append(JudgeLine(names[column], means.interval(column), rank, len(own), missing, orders_of(own)))
    n = len(names)
    return JudgeBoard(tuple(lines), len(items), means.separable(), n * (n - 1) // 2)


def orders_of(verdicts: Sequence[Verdict]) -> judging.Orders | None:
    """What one judge did with the pairs that it saw in both orders; None where there are none."""
    by_item: dict[str, dict[int, int]] = defaultdict(dict)
    for v in verdicts:
        if v.shown_first is not None:
            by_item[v.item].setdefault(v.shown_first, CODES[v.outcome])
    both = [(seen[0], seen[1]) for seen in by_item.values() if len(seen) == 2]
    if not both:
        return None
    one, two = np.array(both).T
    return judging.both_orders(one, two)


def models_as_plain(board: ModelBoard, ties: bt.Ties, source: str) -> dict[str, Any]:
    """A leaderboard of models as plain values, for pages and files; what gives no strength is said in ``findings``."""
    names, lines, gaps = board.names, [], []
    record = lambda m: {"won": board.wins[m], "tied": board.ties[m], "lost": board.losses[m]}  # noqa: E731
    if board.board is None:
        order = sorted(range(len(names)), key=lambda m: (-share_of(board, m), names[m]))
        lines = [
            {"name": names[m], "value": None, "low": None, "high": None, "win_rate": share_of(board, m), **record(m)}
            for m in order
        ]
        findings = why_no_strengths(board)
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
        clear, of = board.separable()
        findings = [f"{names[places[0].model]} leads. {clear} of {of} differences between two models exclude 0."]
        if board.board.unconnected:
            lost = f"{board.board.unconnected} of the resamples had no finite strengths and are left out"
            findings.append(f"{lost}: the intervals are too narrow at the far ends.")
    if board.without:
        findings.append(f"{board.without} verdicts name no winner and no tie; they count for nobody.")
    facts = {
        "models": _count(len(names)),
        "verdicts": _count(board.verdicts),
        "without a verdict": _count(board.without),
        "judges": _count(board.judges),
        "pairs of answers": _count(board.items),
        "prompts": _count(board.prompts),
        "ties": _TIES[ties],
    }
    about = {"title": "Leaderboard of models", "subtitle": source, "unit": "strength in nats", "rule": 0.0}
    return {**about, "findings": findings, "facts": list(facts.items()), "lines": lines, "differences": gaps}


def judges_as_plain(board: JudgeBoard, source: str) -> dict[str, Any]:
    """A leaderboard of judges as plain values."""
    lines = []
    for line in board.lines:
        figures: dict[str, Any] = {"rank": line.rank, "games": line.games, "no_verdict": line.no_verdict}
        if line.orders is not None:
            figures |= {
                "consistent": line.orders.consistent,
                "contradictions": line.orders.contradictions,
                "slot_bias": finite(line.orders.slot_bias),
                "slot_p": line.orders.slot_p,
            }
        lines.append({"name": line.name, **interval(line.accuracy), **figures})
    findings = [
        f"{board.lines[0].name} leads. {board.separable} of {board.pairs} pairs of judges can be told apart on the "
        "same items."
    ]
    biased = [
        x for x in board.lines if x.orders and x.orders.slot_p is not None and x.orders.slot_p < 0.05 / len(lines)
    ]
    if biased:
        findings.append(
            f"{len(biased)} of {len(lines)} judges prefer a slot whatever stands there (exact test, p below 0.05 over "
            "the number of judges)."
        )
    if missing := sum(x.no_verdict for x in board.lines):
        findings.append(f"{missing} games have no verdict; none of them counts as right.")
    facts = [("judges", _count(len(lines))), ("items of known truth", _count(board.items))]
    about = {"title": "Leaderboard of judges", "subtitle": source, "unit": "accuracy", "rule": None}
    return {**about, "findings": findings, "facts": facts, "lines": lines, "differences": []}


def why_no_strengths(board: ModelBoard) -> list[str]:
    """Why the verdicts give no finite strengths, naming the models."""
    found, names = board.connection, board.names
    if len(found.groups) > 1:
        groups = "; ".join(", ".join(names[m] for m in group) for group in found.groups)
        return [
            f"There is no common scale: {len(found.groups)} groups of models were never compared with each other "
            f"({groups}). Compare a model of each with one of another."
        ]
    said = []
    if found.unbeaten:
        said.append(f"{_named(board, found.unbeaten)} never lost")
    if found.winless:
        said.append(f"{_named(board, found.winless)} never won")
    if not said:
        parts = " and ".join("{" + ", ".join(names[m] for m in part) + "}" for part in found.parts)
        said.append(f"of {parts} one side never won against the other")
    return [
        f"There are no finite strengths: {', and '.join(said)}. Win rates stand below; more comparisons would give a "
        "number."
    ]


def share_of(board: ModelBoard, model: int) -> float:
    """Points of a model over its comparisons, a tie being half a point."""
    won, drawn, lost = board.wins[model], board.ties[model], board.losses[model]
    return (won + drawn / 2) / (won + drawn + lost)


_TIES: dict[bt.Ties, str] = {
    "half": "half a win each way",
    "davidson": "Davidson 1970",
    "rao_kupper": "Rao and Kupper 1967",
}


def _count(n: int) -> str:
    return f"{n:,}"


def _named(board: ModelBoard, models: Sequence[int]) -> str:
    return " and ".join(board.names[m] for m in models)
