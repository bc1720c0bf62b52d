"""The figures of a comparison, from the measured answers: intervals over seeds, matched KL, win rates, cost.

The result is plain values; page, picture and tables are drawn from it alone, so that all of them say the same.
Every mean is a sum over a count within a seed; seeds weigh the same. Seeds answer the same prompts, and so do methods:
whatever sets two of them against each other is a difference of the same seed on the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from afzal.compare.measure import Answers
from afzal.config import START, CompareConfig, Entry
from afzal.stats.comparing import (
    Total,
    at_kl,
    bootstrap,
    differences,
    matched_levels,
    over_seeds_and_prompts,
    reached,
    same_draws,
    share_of_wins,
    standard_error,
    total,
    wins,
)
from afzal.stats.intervals import Interval, over_seeds


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to come this far, with the stages it needs: seconds on this machine, tokens trained on, and tokens
    generated for training."""

    seconds: float = 0.0
    tokens: int = 0
    generated: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens, self.generated + other.generated)


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A policy on the way of a method: ``step`` counts updates, or is the n of best-of-n. Each answer was made of
    ``draws`` draws: n for best-of-n."""

    step: int
    answers: Answers
    cost: Cost
    draws: int = 1


Course = Sequence[Point]
"""The points of one method and seed, by step."""


def summary(
    config: CompareConfig,
    policies: Sequence[Entry],
    starts: Mapping[int, Answers],
    courses: Mapping[tuple[str, int], Course],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """All figures.

    Args:
        policies: the entries that are compared, in order.
        starts: the start model's answers by seed.
        courses: by entry's name and seed; an entry may lack seeds.
        prompts: the words of the prompts that are shown.
    """
    chief = next(iter(config.rewards))
    by_seed = {e.name: {s: courses[e.name, s] for s in config.seeds if (e.name, s) in courses} for e in policies}
    chosen = chosen_points(config, policies, courses)
    ways = {name: {s: _way(starts[s], c) for s, c in found.items()} for name, found in by_seed.items()}
    levels = config.matched_kl or matched_levels([min(map(_reach, w.values()), default=0.0) for w in ways.values()])
    methods = [
        {
            "name": e.name,
            "label": e.label,
            "kind": e.kind,
            "needs": list(e.needs),
            "kl_is_bound": e.kind == "best_of",
            "points": [
                _record(config, s, p, starts[s], chief) for s, course in by_seed[e.name].items() for p in course
            ],
            "curve": _curve(by_seed[e.name], starts, chief),
            "judged": _figures(chosen[e.name], starts, chief),
            "matched": [_matched(level, ways[e.name], chief) for level in levels],
            "turned": _turned(by_seed[e.name], chief),
        }
        for e in policies
    ]
    at_start = start_points(starts)
    return {
        "rewards": list(config.rewards),
        "seeds": list(config.seeds),
        "prompts": len(next(iter(starts.values())).texts),
        "answers_per_prompt": config.samples,
        "matched_kl": levels,
        "start": _figures(at_start, starts, chief),
        "start_points": [_record(config, s, p, starts[s], chief) for s, p in at_start.items()],
        "methods": methods,
        "differences": [row for level in levels for row in _differences(level, ways, chief)],
        "wins": _table_of_wins({START: at_start, **chosen}, chief),
        "samples": _side_by_side(config, policies, chosen, starts, prompts),
    }


def chosen_points(
    config: CompareConfig, policies: Sequence[Entry], courses: Mapping[tuple[str, int], Course]
) -> dict[str, dict[int, Point | None]]:
    """The point that each policy is judged by, by its name and seed; None where no point is within the budget."""
    return {
        e.name: {s: _judged(courses[e.name, s], config.kl_budget) for s in config.seeds if (e.name, s) in courses}
        for e in policies
    }


def start_points(starts: Mapping[int, Answers]) -> dict[int, Point]:
    """The start as a policy, by seed."""
    return {s: Point(0, a, Cost()) for s, a in starts.items()}


def _judged(course: Course, budget: float | None) -> Point | None:
    """The last point, or the last within the budget; never one that was picked for its reward."""
    inside = [p for p in course if budget is None or total(p.answers.kl).mean <= budget]
    return inside[-1] if inside else None


def _way(start: Answers, course: Course) -> list[Point]:
    return [Point(0, start, Cost()), *course]


def _kls(way: Sequence[Point]) -> list[float]:
    return [total(p.answers.kl).mean for p in way]


def _reach(way: Sequence[Point]) -> float:
    return reached(_kls(way))


def _won(ours: Point, theirs: Point, chief: str) -> np.ndarray:
    """``[X]`` win rates on each prompt, of pairs of answers that share no random numbers: within a seed all policies
    draw by the same ones."""
    a, b = ours.answers.rewards[chief], theirs.answers.rewards[chief]
    return wins(a, b, same_draws(a.shape[1], b.shape[1], ours.draws, theirs.draws))


def _record(config: CompareConfig, seed: int, point: Point, start: Answers, chief: str) -> dict[str, Any]:
    """One policy of one seed: sums and counts, and intervals over its prompts."""
    a = point.answers
    shares = _won(point, Point(0, start, Cost()), chief)
    gain = bootstrap(differences(a.rewards[chief], start.rewards[chief]), resamples=config.resamples, seed=seed)
    return {
        "seed": seed,
        "step": point.step,
        "rewards": {name: _total(values) for name, values in a.rewards.items()},
        "reward_se": standard_error(a.rewards[chief]),
        "kl": _total(a.kl),
        "kl_se": standard_error(a.kl),
        "tokens": _total(a.tokens),
        "unended": _total(a.unended),
        "gain": asdict(gain),
        "win": asdict(share_of_wins(shares, a.rewards[chief].shape[1])),
        "drawn_per_answer": a.drawn,
        "cost": asdict(point.cost),
    }


def _total(values: np.ndarray) -> dict[str, float]:
    found: Total = total(values)
    return {"sum": found.sum, "count": found.count, "mean": found.mean}


def _curve(found: Mapping[int, Course], starts: Mapping[int, Answers], chief: str) -> list[dict[str, Any]]:
    """Means over seeds at each step, with the start as step 0."""
    at: dict[int, dict[int, Point | None]] = {0: {s: Point(0, starts[s], Cost()) for s in found}}
    for seed, course in found.items():
        for point in course:
            at.setdefault(point.step, {})[seed] = point
    return [{"step": step, **_figures(points, starts, chief)} for step, points in sorted(at.items())]


def _figures(points: Mapping[int, Point | None], starts: Mapping[int, Answers], chief: str) -> dict[str, Any]:
    """Intervals over the seeds that have a point; empty without any."""
    there = {s: p for s, p in points.items() if p is not None}
    if not there:
        return {"seeds": 0}

    def over(figure: Callable[[int, Point], float]) -> dict[str, Any]:
        found: Interval = over_seeds([figure(s, p) for s, p in there.items()])
        return asdict(found)

    def paired(by_prompt: Callable[[int, Point], np.ndarray]) -> dict[str, Any]:
        return asdict(over_seeds_and_prompts(np.stack([by_prompt(s, p) for s, p in there.items()])))

    def mean(name: str) -> dict[str, Any]:
        return over(lambda _, p: total(getattr(p.answers, name)).mean)

    names = next(iter(there.values())).answers.rewards
    return {
        "seeds": len(there),
        "steps": [p.step for p in there.values()],
        "rewards": {n: over(lambda _, p, n=n: total(p.answers.rewards[n]).mean) for n in names},
        "gain": paired(lambda s, p: differences(p.answers.rewards[chief], starts[s].rewards[chief])),
        "win": paired(lambda s, p: _won(p, Point(0, starts[s], Cost()), chief)),
        "kl": mean("kl"),
        "tokens": mean("tokens"),
        "unended": mean("unended"),
        "drawn_per_answer": over(lambda _, p: p.answers.drawn),
        "seconds": over(lambda _, p: p.cost.seconds),
        "trained_tokens": over(lambda _, p: float(p.cost.tokens)),
        "generated_tokens": over(lambda _, p: float(p.cost.generated)),
    }


def _matched(level: float, ways: Mapping[int, Sequence[Point]], chief: str) -> dict[str, Any]:
    """The reward at a KL, over the seeds. ``reached`` of ``of`` seeds come to it; where some do not there is no value,
    since those that do are not a fair draw of all."""
    values = [rewards.mean() for way in ways.values() if (rewards := _rewards_at(level, way, chief)) is not None]
    facts = {"kl": level, "reached": len(values), "of": len(ways)}
    if not values or len(values) < len(ways):
        return facts | {"value": None, "low": None, "high": None, "n": 0}
    return facts | asdict(over_seeds([float(v) for v in values]))


def _rewards_at(level: float, way: Sequence[Point], chief: str) -> np.ndarray | None:
    """``[X]`` mean rewards on each prompt where a training comes to a KL; None where it does not."""
    weights = at_kl(_kls(way), level)
    return None if weights is None else weights @ np.stack([p.answers.rewards[chief].mean(1) for p in way])


def _differences(level: float, ways: Mapping[str, Mapping[int, Sequence[Point]]], chief: str) -> list[dict[str, Any]]:
    """Reward at a KL of each method less that of each later one, paired by seed and prompt, where all seeds of both
    come to it."""
    at = {name: {s: _rewards_at(level, way, chief) for s, way in found.items()} for name, found in ways.items()}
    whole = {name: found for name, found in at.items() if found and all(r is not None for r in found.values())}
    rows = []
    for (ours, mine), (theirs, other) in combinations(whole.items(), 2):
        pairs = [(mine[s], other[s]) for s in mine if s in other]
        if pairs:
            found = over_seeds_and_prompts(np.stack([a - b for a, b in pairs if a is not None and b is not None]))
            rows.append({"kl": level, "ours": ours, "theirs": theirs, **asdict(found)})
    return rows


def _turned(found: Mapping[int, Course], chief: str) -> list[dict[str, Any]]:
    """Rewards that kept rising while the true one fell, from its best point to the last, both clearly.

    The best point is the one of the highest mean on every other prompt; what came after it is measured on the prompts
    between, so that a peak by chance is not followed by a fall by choice.
    """
    if not found or any(len(c) < 2 for c in found.values()):
        return []
    ends = []
    for course in found.values():
        height = [float(p.answers.rewards[chief][::2].mean()) for p in course]
        ends.append((course[max(range(len(course)), key=height.__getitem__)].answers, course[-1].answers))
    if any(peak is last or len(peak.rewards[chief]) < 4 for peak, last in ends):
        return []

    def change(name: str) -> Interval:
        later = [last.rewards[name][1::2].mean(1) - peak.rewards[name][1::2].mean(1) for peak, last in ends]
        return over_seeds_and_prompts(np.stack(later))

    def means(name: str, k: int) -> float:
        return float(np.mean([e[k].rewards[name].mean() for e in ends]))

    if change(chief).ends[1] >= 0:
        return []
    return [
        {"reward": n, "before": [means(chief, 0), means(n, 0)], "after": [means(chief, 1), means(n, 1)]}
        for n in ends[0][0].rewards
        if n != chief and change(n).ends[0] > 0
    ]


def _table_of_wins(chosen: Mapping[str, Mapping[int, Point | None]], chief: str) -> list[dict[str, Any]]:
    """Every ordered pair of policies: how often the first's answer has the higher true reward, ties half."""
    rows = []
    for ours, mine in chosen.items():
        for theirs, other in chosen.items():
            pairs = [(p, q) for s, p in mine.items() if p is not None and (q := other.get(s)) is not None]
            if ours != theirs and pairs:
                found = over_seeds_and_prompts(np.stack([_won(p, q, chief) for p, q in pairs]))
                rows.append({"ours": ours, "theirs": theirs, **asdict(found)})
    return rows


def _side_by_side(
    config: CompareConfig,
    policies: Sequence[Entry],
    chosen: Mapping[str, Mapping[int, Point | None]],
    starts: Mapping[int, Answers],
    prompts: Sequence[str],
) -> list[dict[str, Any]]:
    """The first answer of every policy to the first prompts, of the first seed."""
    seed = config.seeds[0]
    labelled = [("the start", starts[seed])]
    for e in policies:
        point = chosen[e.name].get(seed)
        if point is not None:
            labelled.append((e.label, point.answers))
    return [{"prompt": p, "answers": [_answer(name, a, k) for name, a in labelled]} for k, p in enumerate(prompts)]


def _answer(name: str, a: Answers, prompt: int) -> dict[str, Any]:
    return {
        "label": name,
        "text": a.texts[prompt][0],
        "rewards": {n: float(values[prompt, 0]) for n, values in a.rewards.items()},
        "tokens": int(a.tokens[prompt, 0]),
        "unended": bool(a.unended[prompt, 0]),
    }
