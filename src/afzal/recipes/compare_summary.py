"""The figures of a comparison, from the measured answers: intervals over seeds, matched KL, win rates, cost.

The result is plain values; page, picture and tables are drawn from it alone, so that all of them say the same.
Every mean is a sum over a count within a seed; seeds weigh the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.config import START, CompareConfig, Entry
from afzal.recipes.compare_measure import Answers
from afzal.stats.comparing import Total, at_kl, bootstrap, differences, matched_levels, standard_error, total, wins
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
    """A policy on the way of a method: ``step`` counts updates, or is the n of best-of-n."""

    step: int
    answers: Answers
    cost: Cost


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
    chosen = {name: {s: _judged(c, config.kl_budget) for s, c in found.items()} for name, found in by_seed.items()}
    levels = config.matched_kl or matched_levels([_reach(by_seed[e.name]) for e in policies])
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
            "matched": [_matched(level, by_seed[e.name], starts, chief) for level in levels],
            "turned": _turned(by_seed[e.name], chief),
        }
        for e in policies
    ]
    at_start = {s: Point(0, a, Cost()) for s, a in starts.items()}
    return {
        "rewards": list(config.rewards),
        "seeds": list(config.seeds),
        "prompts": len(next(iter(starts.values())).texts),
        "answers_per_prompt": config.samples,
        "matched_kl": levels,
        "start": _figures(at_start, starts, chief),
        "start_points": [_record(config, s, p, starts[s], chief) for s, p in at_start.items()],
        "methods": methods,
        "wins": _table_of_wins({START: at_start, **chosen}, chief),
        "samples": _side_by_side(config, policies, chosen, starts, prompts),
    }


def _judged(course: Course, budget: float | None) -> Point | None:
    """The last point, or the last within the budget; never one that was picked for its reward."""
    inside = [p for p in course if budget is None or total(p.answers.kl).mean <= budget]
    return inside[-1] if inside else None


def _reach(found: Mapping[int, Course]) -> float:
    return max((total(p.answers.kl).mean for course in found.values() for p in course), default=0.0)


def _record(config: CompareConfig, seed: int, point: Point, start: Answers, chief: str) -> dict[str, Any]:
    """One policy of one seed: sums and counts, and intervals over its prompts."""
    a = point.answers
    shares = wins(a.rewards[chief], start.rewards[chief])
    again = {"resamples": config.resamples, "seed": seed}
    return {
        "seed": seed,
        "step": point.step,
        "rewards": {name: _total(values) for name, values in a.rewards.items()},
        "reward_se": standard_error(a.rewards[chief]),
        "kl": _total(a.kl),
        "kl_se": standard_error(a.kl),
        "tokens": _total(a.tokens),
        "unended": _total(a.unended),
        "gain": asdict(bootstrap(differences(a.rewards[chief], start.rewards[chief]), **again)),
        "win": asdict(bootstrap(shares, **again)),
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

    def mean(name: str) -> dict[str, Any]:
        return over(lambda _, p: total(getattr(p.answers, name)).mean)

    names = next(iter(there.values())).answers.rewards
    return {
        "seeds": len(there),
        "steps": [p.step for p in there.values()],
        "rewards": {n: over(lambda _, p, n=n: total(p.answers.rewards[n]).mean) for n in names},
        "gain": over(lambda s, p: float(differences(p.answers.rewards[chief], starts[s].rewards[chief]).mean())),
        "win": over(lambda s, p: float(wins(p.answers.rewards[chief], starts[s].rewards[chief]).mean())),
        "kl": mean("kl"),
        "tokens": mean("tokens"),
        "unended": mean("unended"),
        "drawn_per_answer": over(lambda _, p: p.answers.drawn),
        "seconds": over(lambda _, p: p.cost.seconds),
        "trained_tokens": over(lambda _, p: float(p.cost.tokens)),
        "generated_tokens": over(lambda _, p: float(p.cost.generated)),
    }


def _matched(level: float, found: Mapping[int, Course], starts: Mapping[int, Answers], chief: str) -> dict[str, Any]:
    """The best reward at a KL, by the seeds whose way crosses it; ``reached`` of ``of`` seeds do."""
    values = []
    for seed, course in found.items():
        way = [Point(0, starts[seed], Cost()), *course]
        kl = [total(p.answers.kl).mean for p in way]
        reward = [total(p.answers.rewards[chief]).mean for p in way]
        values.append(at_kl(kl, reward, level))
    there = [v for v in values if v is not None]
    facts = {"kl": level, "reached": len(there), "of": len(values)}
    return facts | (asdict(over_seeds(there)) if there else {"value": None, "low": None, "high": None, "n": 0})


def _turned(found: Mapping[int, Course], chief: str) -> list[dict[str, Any]]:
    """Rewards that went on rising while the true one fell: from its best point to the last, in every seed."""
    if not found or any(len(c) < 2 for c in found.values()):
        return []
    others = [n for n in next(iter(found.values()))[0].answers.rewards if n != chief]
    means = {s: [{n: total(v).mean for n, v in p.answers.rewards.items()} for p in c] for s, c in found.items()}
    best = {s: max(range(len(rows)), key=lambda k, rows=rows: rows[k][chief]) for s, rows in means.items()}
    raised = []
    for name in others:
        ends = [(rows[best[s]], rows[-1]) for s, rows in means.items()]
        if all(last[chief] < peak[chief] and last[name] > peak[name] for peak, last in ends):
            before, after = ([float(np.mean([e[k][n] for e in ends])) for n in (chief, name)] for k in (0, 1))
            raised.append({"reward": name, "before": before, "after": after})
    return raised


def _table_of_wins(chosen: Mapping[str, Mapping[int, Point | None]], chief: str) -> list[dict[str, Any]]:
    """Every ordered pair of policies: how often the first's answer has the higher true reward, ties half."""
    rows = []
    for ours, mine in chosen.items():
        for theirs, other in chosen.items():
            pairs = [(p, q) for s, p in mine.items() if p is not None and (q := other.get(s)) is not None]
            if ours != theirs and pairs:
                values = [float(wins(p.answers.rewards[chief], q.answers.rewards[chief]).mean()) for p, q in pairs]
                rows.append({"ours": ours, "theirs": theirs, **asdict(over_seeds(values))})
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
