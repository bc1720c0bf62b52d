"""The figures of one judge from its rulings: win rates, order, length, agreement with people. Plain values throughout.

Shapes: N pairs, R people. Outcomes are coded as in :mod:`afzal.stats.judging`: 1 the first answer, 2 the second, 0 a
tie, -1 no verdict, -2 not asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np

from afzal.judge import validation
from afzal.judge.figures import figure, finite
from afzal.judge.games import Game, Pair, Ruling, category_of
from afzal.judge.labels import Labels
from afzal.judge.verdicts import CODES
from afzal.records import Item, prompt_key
from afzal.stats import judging
from afzal.stats.intervals import clustered, share

_POINTS = {1: 1.0, 2: 0.0, 0: 0.5}


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What is known about the pairs and the judge besides its rulings.

    Attributes:
        people: people's labels on the same pairs, in the same numbering.
        others: points ``[N]`` that other judges give the first answer, by judge name; NaN without a verdict.
        own: the ``source`` of answers by the judge's own model, for self-preference.
        prices: per million tokens of requests and of replies.
    """

    people: Labels | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: str | None = None
    prices: tuple[float | None, float | None] = (None, None)


def outcome_codes(
    pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling]
) -> tuple[np.ndarray, np.ndarray]:
    """``[N, 2]`` first samples' outcomes in original and in swapped order (-2 if not played), and ``[N]`` the outcome
    of all games together: the common verdict, a tie if they differ, no verdict if any game has none."""
    place = {pair: k for k, pair in enumerate(pairs)}
    table, combined = np.full((len(pairs), 2), -2), np.full(len(pairs), -2)
    for game, ruling in zip(games, rulings, strict=True):
        k, code = place[game.pair], CODES[ruling.outcome]
        if game.sample == 0:
            table[k, int(game.swapped)] = code
        before = combined[k]
        combined[k] = code if before == -2 else -1 if -1 in (before, code) else before if before == code else 0
    return table, combined


def points_of(codes: np.ndarray) -> np.ndarray:
    """``[N]`` points of the first answer from outcomes ``[N]``; NaN without a verdict."""
    return np.array([_POINTS.get(int(code), math.nan) for code in codes])


def summary(
    name: str,
    items: Sequence[Item],
    pairs: Sequence[Pair],
    games: Sequence[Game],
    rulings: Sequence[Ruling],
    known: JudgeContext | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a judge that the data can give."""
    known, resampling = known or JudgeContext(), {"resamples": resamples, "seed": seed}
    table, combined = outcome_codes(pairs, games, rulings)
    prompts = [prompt_key(items[pair.item]) for pair in pairs]
    gap = np.array([len(p.answers[0]) - len(p.answers[1]) for p in pairs])
    figures: dict[str, Any] = {
        "judge": name,
        "pairs": len(pairs),
        "prompts": len(set(prompts)),
        "games": len(games),
        "no_verdict": sum(r.outcome == "none" for r in rulings),
        "no_verdict_share": sum(r.outcome == "none" for r in rulings) / len(rulings),
        "why_none": dict(Counter(r.why for r in rulings if r.outcome == "none").most_common(8)),
        **_cost(rulings, known.prices),
        "outcomes": {word: int((combined == code).sum()) for word, code in CODES.items() if word != "both_bad"},
        "first_wins": share_of((combined == 1).astype(float), combined > 0, prompts),
        "longer_wins": share_of(((combined == 1) == (gap > 0)).astype(float), (combined > 0) & (gap != 0), prompts),
    }
    both = (table > -2).all(1)
    if both.any():
        figures["orders"] = _orders(judging.both_orders(table[both, 0], table[both, 1], list(compress(prompts, both))))
    people = known.people if known.people is not None and (known.people.table >= 0).any() else None
    human = None if people is None else validation.points_of_people(people)
    if (sides := two_models(items, pairs)) is not None:
        figures["models"] = _models(sides, combined, gap, prompts, human, **resampling)
    if people is not None:
        figures["people"] = validation.compare_with_people(combined, people, **resampling)
    if human is not None and (p := _mean_probability(pairs, games, rulings)) is not None:
        figures["calibration"] = validation.calibration_figures(p, human, prompts)
    if known.own is not None:
        other_points = dict(known.others) if human is None else {"people": human, **known.others}
        wrote = _source_sides(known.own, items, pairs)
        figures["own_answers"] = validation.self_preference(
            wrote, points_of(combined), other_points, prompts, **resampling
        )
    if by_category := _by_category(items, pairs, prompts, combined, table, sides, people):
        figures["by_category"] = by_category
    return figures


def _cost(rulings: Sequence[Ruling], prices: tuple[float | None, float | None]) -> dict[str, Any]:
    """Tokens of the verdicts, and their cost if a price is given."""
    tokens = [sum(r.tokens[k] for r in rulings) for k in (0, 1)]
    costs = [n * price / 1e6 for n, price in zip(tokens, prices, strict=True) if price is not None]
    cost = {"cost": sum(costs)} if costs else {}
    return {"tokens_in": tokens[0], "tokens_out": tokens[1], **cost}


def _mean_probability(pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling]) -> np.ndarray | None:
    """``[N]`` the mean probability that a judge states for the first answer; None if it states none."""
    place = {pair: k for k, pair in enumerate(pairs)}
    probabilities = [(place[g.pair], r.p_first) for g, r in zip(games, rulings, strict=True) if r.p_first is not None]
    if not probabilities:
        return None
    index, p = (np.array(column) for column in zip(*probabilities, strict=True))
    with np.errstate(invalid="ignore"):
        return np.bincount(index, p, len(pairs)) / np.bincount(index, minlength=len(pairs))


def _source_sides(source: str, items: Sequence[Item], pairs: Sequence[Pair]) -> np.ndarray:
    """``[N]`` 1 if only the first answer is from that source, -1 if only the second is, else 0."""
    sources = [[r.source for r in item.responses] for item in items]
    return np.array([int(sources[p.item][p.first] == source) - int(sources[p.item][p.second] == source) for p in pairs])


def _by_category(
    items: Sequence[Item],
    pairs: Sequence[Pair],
    prompts: Sequence[Hashable],
    combined: np.ndarray,
    table: np.ndarray,
    sides: tuple[str, str, np.ndarray] | None,
    people: Labels | None,
) -> list[dict[str, Any]]:
    """Pairs, win rate, agreement with people and consistency by category; empty for fewer than two categories."""
    categories = np.array([category_of(items[pair.item]) or "" for pair in pairs])
    names = sorted({name for name in categories.tolist() if name})
    points, lines = points_of(combined), []
    if sides is not None:
        points = np.where(sides[2] > 0, points, 1 - points)
    equal = None if people is None else validation.equal_labels(combined, people)
    for name in names if len(names) > 1 else ():
        in_category = categories == name
        line: dict[str, Any] = {"category": name, "pairs": int(in_category.sum())}
        if sides is not None:
            line["win_rate"] = share_of(points, in_category & np.isfinite(points), prompts)
        if equal is not None:
            rows, columns = np.nonzero(np.isfinite(equal) & in_category[:, None])
            where = [prompts[r] for r in rows.tolist()]
            line["agreement"] = figure(share(clustered(where, equal[rows, columns].tolist()))) if where else None
        if (both_played := in_category & (table > -2).all(1)).any():
            line["consistent"] = judging.both_orders(table[both_played, 0], table[both_played, 1]).consistent
        lines.append(line)
    return lines


def share_of(values: np.ndarray, use: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    """The mean over the used pairs ``[N]``, its interval over prompts and their number; None without any."""
    if not use.any():
        return None
    rows = clustered([p for p, u in zip(prompts, use, strict=True) if u], values[use].tolist())
    return figure(share(rows)) | {"pairs": int(use.sum())}


def _orders(orders: judging.Orders) -> dict[str, Any]:
    names = ("pairs", "contradictions", "consistent", "first_slot", "slot_bias", "slot_p", "kappa")
    return {name: finite(getattr(orders, name)) for name in names}


def two_models(items: Sequence[Item], pairs: Sequence[Pair]) -> tuple[str, str, np.ndarray] | None:
    """The two models of a comparison, and ``[N]`` +1 if the first of them wrote a pair's first answer, else -1.

    The first model is the first one that the first pair names. None unless the answers are from exactly two named
    models.
    """
    sources = [(items[p.item].responses[p.first].source, items[p.item].responses[p.second].source) for p in pairs]
    names = list(dict.fromkeys(name for both in sources for name in both))
    if len(names) != 2 or None in names or any(a == b for a, b in sources):
        return None
    first, second = names
    assert first is not None
    assert second is not None
    return first, second, np.array([1 if a == first else -1 for a, _ in sources])


def _models(
    sides: tuple[str, str, np.ndarray],
    combined: np.ndarray,
    gap: np.ndarray,
    prompts: Sequence[Hashable],
    human: np.ndarray | None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Wins, ties and losses of the first model, and its win rate: raw, at equal lengths, and corrected by people's
    labels."""
    ours, theirs, side = sides
    decided = combined >= 0
    points = np.where(side > 0, points_of(combined), 1 - points_of(combined))
    figures: dict[str, Any] = {
        "ours": ours,
        "theirs": theirs,
        "win": int((points == 1).sum()),
        "tie": int((points == 0.5).sum()),
        "loss": int((points == 0).sum()),
        "no_verdict": int((~decided).sum()),
    }
    if not decided.any():
        return figures
    longer_by = (gap * side)[decided]
    longest = np.where(gap * side > 0, 1.0, np.where(gap * side < 0, 0.0, 0.5))
    figures |= {
        "win_rate": share_of(points, decided, prompts),
        "win_rate_of_the_longer": float(longest[decided].mean()),
    }
    if np.ptp(longer_by) > 0:
        judged_prompts = [p for p, s in zip(prompts, decided, strict=True) if s]
        resampling = {"resamples": min(resamples, 500), "seed": seed}
        control = judging.length_controlled(points[decided], longer_by, judged_prompts, **resampling)
        figures |= {"lengths_decide": True} if control is None else {"length_controlled": _at_equal_lengths(control)}
    if human is not None:
        corrected = validation.prediction_powered_win_rate(points, np.where(side > 0, human, 1 - human), prompts)
        figures |= {} if corrected is None else {"with_people": corrected}
    return figures


def _at_equal_lengths(control: judging.LengthControl) -> dict[str, Any]:
    return figure(control.controlled) | {
        "slope": figure(control.slope),
        "deviation": control.deviation,
        "overlap": control.overlap,
        "extrapolated": control.extrapolated,
    }


def flat(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a summary by its dotted name, for ``--require``."""
    numbers: dict[str, float] = {}
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{name}.")
            if isinstance(value.get("value"), int | float):
                numbers[name] = float(value["value"])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers
