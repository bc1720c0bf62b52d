"""What the rulings of one judge come to: win rates, both orders, length, people beside it. Plain values throughout.

Shapes: N pairs, R people. Outcomes are coded as in :mod:`afzal.stats.judging`: 1 the first answer, 2 the second, 0 a
tie, -1 no verdict, -2 where nothing was asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from afzal.judge import beside
from afzal.judge.games import Game, Pair, Ruling, category_of
from afzal.judge.labels import Labels
from afzal.judge.plain import figure, finite
from afzal.judge.verdicts import CODES
from afzal.records import Item, prompt_key
from afzal.stats import judging
from afzal.stats.intervals import clustered, share

_POINTS = {1: 1.0, 2: 0.0, 0: 0.5}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beside the rulings of a judge.

    Attributes:
        people: labels of people on the same pairs, numbered alike.
        others: by name ``[N]`` the points that other judges give the first answer, NaN without a verdict.
        own: the ``source`` of answers of the judge's own model, for self-preference.
        prices: of a million tokens asked and of a million answered.
    """

    people: Labels | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: str | None = None
    prices: tuple[float | None, float | None] = (None, None)


def codes(pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling]) -> tuple[np.ndarray, np.ndarray]:
    """``[N, 2]`` outcomes as they stand and turned (-2 where that order was not played; first samples), and ``[N]``
    the outcome of all games together: what they agree on, a tie where they part, no verdict where one has none."""
    place = {pair: k for k, pair in enumerate(pairs)}
    table, together = np.full((len(pairs), 2), -2), np.full(len(pairs), -2)
    for game, ruling in zip(games, rulings, strict=True):
        k, code = place[game.pair], CODES[ruling.outcome]
        if game.sample == 0:
            table[k, int(game.turned)] = code
        before = together[k]
        together[k] = code if before == -2 else -1 if -1 in (before, code) else before if before == code else 0
    return table, together


def points_of(together: np.ndarray) -> np.ndarray:
    """``[N]`` what the first answer gets of a point, NaN without a verdict, by outcomes ``[N]``."""
    return np.array([_POINTS.get(int(code), math.nan) for code in together])


def summary(
    name: str,
    items: Sequence[Item],
    pairs: Sequence[Pair],
    games: Sequence[Game],
    rulings: Sequence[Ruling],
    known: Known | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a judge; those that the data cannot give are left out."""
    known, drawn = known or Known(), {"resamples": resamples, "seed": seed}
    table, together = codes(pairs, games, rulings)
    prompts = [prompt_key(items[pair.item]) for pair in pairs]
    gap = np.array([len(p.answers[0]) - len(p.answers[1]) for p in pairs])
    found: dict[str, Any] = {
        "judge": name,
        "pairs": len(pairs),
        "prompts": len(set(prompts)),
        "games": len(games),
        "no_verdict": sum(r.outcome == "none" for r in rulings),
        "no_verdict_share": sum(r.outcome == "none" for r in rulings) / len(rulings),
        "why_none": dict(Counter(r.why for r in rulings if r.outcome == "none").most_common(8)),
        **_cost(rulings, known.prices),
        "outcomes": {word: int((together == code).sum()) for word, code in CODES.items() if word != "both_bad"},
        "first_wins": share_of((together == 1).astype(float), together > 0, prompts),
        "longer_wins": share_of(((together == 1) == (gap > 0)).astype(float), (together > 0) & (gap != 0), prompts),
    }
    both = (table > -2).all(1)
    if both.any():
        found["orders"] = _orders(judging.both_orders(table[both, 0], table[both, 1]))
    people = known.people if known.people is not None and (known.people.table >= 0).any() else None
    human = None if people is None else beside.points_of_people(people)
    if (sides := two_models(items, pairs)) is not None:
        found["models"] = _models(sides, together, gap, prompts, human, **drawn)
    if people is not None:
        found["people"] = beside.beside_people(together, people, **drawn)
    if human is not None and (p := _stated(pairs, games, rulings)) is not None:
        found["calibration"] = beside.calibrated(p, human, prompts)
    if known.own is not None:
        others = dict(known.others) if human is None else {"people": human, **known.others}
        own = _sides_of(known.own, items, pairs)
        found["own_answers"] = beside.own_answers(own, points_of(together), others, prompts, **drawn)
    if by_category := _by_category(items, pairs, prompts, together, table, sides, people):
        found["by_category"] = by_category
    return found


def _cost(rulings: Sequence[Ruling], prices: tuple[float | None, float | None]) -> dict[str, Any]:
    """Tokens of the verdicts, and what they cost where a price is given."""
    tokens = [sum(r.tokens[k] for r in rulings) for k in (0, 1)]
    paid = [n * price / 1e6 for n, price in zip(tokens, prices, strict=True) if price is not None]
    cost = {"cost": sum(paid)} if paid else {}
    return {"tokens_in": tokens[0], "tokens_out": tokens[1], **cost}


def _stated(pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling]) -> np.ndarray | None:
    """``[N]`` the mean of the probabilities that a judge states for the first answer; None where it states none."""
    place = {pair: k for k, pair in enumerate(pairs)}
    stated = [(place[g.pair], r.p_first) for g, r in zip(games, rulings, strict=True) if r.p_first is not None]
    if not stated:
        return None
    at, p = (np.array(column) for column in zip(*stated, strict=True))
    with np.errstate(invalid="ignore"):
        return np.bincount(at, p, len(pairs)) / np.bincount(at, minlength=len(pairs))


def _sides_of(source: str, items: Sequence[Item], pairs: Sequence[Pair]) -> np.ndarray:
    """``[N]`` 1 where only the first answer is of that source, -1 where only the second, else 0."""
    sources = [[r.source for r in item.responses] for item in items]
    return np.array([int(sources[p.item][p.first] == source) - int(sources[p.item][p.second] == source) for p in pairs])


def _by_category(
    items: Sequence[Item],
    pairs: Sequence[Pair],
    prompts: Sequence[Hashable],
    together: np.ndarray,
    table: np.ndarray,
    sides: tuple[str, str, np.ndarray] | None,
    people: Labels | None,
) -> list[dict[str, Any]]:
    """Pairs, win rate, agreement with people and consistency of each category, where there are two or more."""
    of = np.array([category_of(items[pair.item]) or "" for pair in pairs])
    names = sorted({name for name in of.tolist() if name})
    points, found = points_of(together), []
    if sides is not None:
        points = np.where(sides[2] > 0, points, 1 - points)
    equal = None if people is None else beside.equal_labels(together, people)
    for name in names if len(names) > 1 else ():
        own = of == name
        line: dict[str, Any] = {"category": name, "pairs": int(own.sum())}
        if sides is not None:
            line["win_rate"] = share_of(points, own & np.isfinite(points), prompts)
        if equal is not None:
            rows, columns = np.nonzero(np.isfinite(equal) & own[:, None])
            where = [prompts[r] for r in rows.tolist()]
            line["agreement"] = figure(share(clustered(where, equal[rows, columns].tolist()))) if where else None
        if (played := own & (table > -2).all(1)).any():
            line["consistent"] = judging.both_orders(table[played, 0], table[played, 1]).consistent
        found.append(line)
    return found


def share_of(values: np.ndarray, use: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    """The mean of the pairs ``[N]`` that are used, its interval over prompts and their number; None without any."""
    if not use.any():
        return None
    kept = clustered([p for p, u in zip(prompts, use, strict=True) if u], values[use].tolist())
    return figure(share(kept)) | {"pairs": int(use.sum())}


def _orders(seen: judging.Orders) -> dict[str, Any]:
    names = ("pairs", "contradictions", "consistent", "first_slot", "slot_bias", "slot_p", "kappa")
    return {name: finite(getattr(seen, name)) for name in names}


def two_models(items: Sequence[Item], pairs: Sequence[Pair]) -> tuple[str, str, np.ndarray] | None:
    """The two models of a comparison, the one that the first pair names first, and ``[N]`` +1 where it is first, -1
    where it is second; None where the answers are of one model, of several, or nameless."""
    named = [(items[p.item].responses[p.first].source, items[p.item].responses[p.second].source) for p in pairs]
    names = list(dict.fromkeys(name for both in named for name in both))
    if len(names) != 2 or None in names or any(a == b for a, b in named):
        return None
    ours, theirs = names
    assert ours is not None
    assert theirs is not None
    return ours, theirs, np.array([1 if a == ours else -1 for a, _ in named])


def _models(
    sides: tuple[str, str, np.ndarray],
    together: np.ndarray,
    gap: np.ndarray,
    prompts: Sequence[Hashable],
    human: np.ndarray | None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Win, tie and loss of the first model, its win rate, at equal lengths too, and corrected by people's labels."""
    ours, theirs, side = sides
    spoke = together >= 0
    points = np.where(side > 0, points_of(together), 1 - points_of(together))
    found: dict[str, Any] = {
        "ours": ours,
        "theirs": theirs,
        "win": int((points == 1).sum()),
        "tie": int((points == 0.5).sum()),
        "loss": int((points == 0).sum()),
        "no_verdict": int((~spoke).sum()),
    }
    if not spoke.any():
        return found
    of = [p for p, s in zip(prompts, spoke, strict=True) if s]
    longest = np.where(gap * side > 0, 1.0, np.where(gap * side < 0, 0.0, 0.5))
    found |= {"win_rate": share_of(points, spoke, prompts), "win_rate_of_the_longer": float(longest.mean())}
    if judging.separated_by_length(points[spoke], (gap * side)[spoke]):
        found["lengths_decide"] = True
    elif np.ptp(gap[spoke]) > 0:
        controlled = judging.length_controlled(
            points[spoke], (gap * side)[spoke], of, resamples=min(resamples, 500), seed=seed
        )
        found["length_controlled"] = figure(controlled.controlled) | {
            "slope": figure(controlled.slope),
            "deviation": controlled.deviation,
            "overlap": controlled.overlap,
            "extrapolated": controlled.extrapolated,
        }
    if human is not None:
        corrected = beside.corrected(points, np.where(side > 0, human, 1 - human), prompts)
        found |= {} if corrected is None else {"with_people": corrected}
    return found


def flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a summary by its dotted name, for ``--require``."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{name}.")
            if isinstance(value.get("value"), int | float):
                numbers[name] = float(value["value"])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers
