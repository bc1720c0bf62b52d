"""From measured snapshots to a choice: candidates, the KL budget, the Pareto front, and further figures.

Pure functions of arrays and settings. A candidate is one snapshot of one arm with all its seeds, compared by its mean
over seeds and prompts. Larger goals are better; KL is in nats per answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.compare.measure import Answers
from afzal.config import Goal
from afzal.stats.intervals import Interval, over_seeds
from afzal.stats.pareto import hypervolume, knee, on_front
from afzal.stats.policy_comparison import over_seeds_and_prompts, same_draws, total, wins
from afzal.sweep.training import Point

Course = Sequence[Point]
Courses = Mapping[str, Mapping[int, Course]]
"""The snapshots of each training, by arm and seed."""


@dataclass(frozen=True, slots=True)
class Aim:
    """The goal to maximise, its reward, and the KL budget in nats."""

    goal: Goal
    reward: str
    kl_budget: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """Snapshot number ``place`` of an arm, over its seeds. ``steps`` are its updates by seed."""

    arm: str
    place: int
    steps: tuple[int, ...]
    goal: Interval
    kl: Interval

    @property
    def known(self) -> bool:
        """Whether both figures are finite."""
        return math.isfinite(self.goal.value) and math.isfinite(self.kl.value)


def values_of(aim: Aim, point: Point, start: Answers) -> np.ndarray:
    """``[X]`` the goal on each prompt; ``[1]`` for accuracy, whose prompts are those of the held-out pairs."""
    if aim.goal == "accuracy":
        return np.array([point.accuracy[0] if point.accuracy is not None else math.nan])
    ours = point.answers.rewards[aim.reward]
    if aim.goal == "reward":
        return ours.mean(1)
    return wins(ours, start.rewards[aim.reward], same_draws(ours.shape[1], start.rewards[aim.reward].shape[1]))


def candidates(aim: Aim, courses: Courses, starts: Mapping[int, Answers]) -> list[Candidate]:
    """Every snapshot of every arm, arms in order and snapshots by step.

    Args:
        courses: those of arms with all their seeds.
        starts: the start's answers by seed.
    """
    return [
        _candidate(aim, arm, place, {seed: course[place] for seed, course in by_seed.items()}, starts)
        for arm, by_seed in courses.items()
        for place in range(min(len(course) for course in by_seed.values()))
    ]


def _candidate(aim: Aim, arm: str, place: int, points: Mapping[int, Point], starts: Mapping[int, Answers]) -> Candidate:
    goal = _over(aim, [values_of(aim, p, starts[s]) for s, p in points.items()], next(iter(points.values())))
    kl = over_seeds_and_prompts(np.stack([p.answers.kl.mean(1) for p in points.values()]))
    return Candidate(arm, place, tuple(p.step for p in points.values()), goal, kl)


def _over(aim: Aim, values: Sequence[np.ndarray], first: Point) -> Interval:
    """The mean goal over seeds and prompts; the accuracy of a single seed has its own interval."""
    if aim.goal != "accuracy":
        return over_seeds_and_prompts(np.stack(values))
    if len(values) == 1 and first.accuracy is not None:
        return Interval(*first.accuracy, 1)
    return over_seeds([float(v[0]) for v in values])


def within(aim: Aim, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose mean KL is within the budget."""
    return [c for c in candidates if c.known and c.kl.value <= aim.kl_budget]


def best(aim: Aim, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest goal within the budget (then least KL, then the first); None without any."""
    return max(within(aim, candidates), key=lambda c: (c.goal.value, -c.kl.value), default=None)


def score(aim: Aim, candidates: Sequence[Candidate]) -> float | None:
    """One number for an arm, used to propose and prune arms: its best goal within the budget.

    An arm that is never within the budget scores the goal at its least KL less the excess nats, so that of two such
    arms the closer one is better. None if nothing is known.
    """
    chosen = best(aim, candidates)
    if chosen is not None:
        return chosen.goal.value
    nearest = min((c for c in candidates if c.known), key=lambda c: c.kl.value, default=None)
    return None if nearest is None else nearest.goal.value - (nearest.kl.value - aim.kl_budget)


def front(aim: Aim, candidates: Sequence[Candidate], start: float) -> dict[str, Any]:
    """The candidates on the front of KL and goal, its knee, and the dominated area.

    Args:
        start: the goal of the start, whose KL is 0: the lower edge of the area, which extends to the budget.
    """
    kls, goals = (np.array([getattr(c, name).value for c in candidates], float) for name in ("kl", "goal"))
    place = knee(kls, goals)
    return {
        "on_front": np.flatnonzero(on_front(kls, goals)).tolist(),
        "knee": place,
        "hypervolume": hypervolume(kls, goals, at=(aim.kl_budget, start)),
    }


def difference(
    aim: Aim, ours: Mapping[int, Point], theirs: Mapping[int, Point], starts: Mapping[int, Answers]
) -> Interval:
    """One policy's goal less another's, on the same seeds and prompts."""
    rows = [values_of(aim, ours[s], starts[s]) - values_of(aim, theirs[s], starts[s]) for s in ours]
    if aim.goal == "accuracy":
        return over_seeds([float(row[0]) for row in rows])
    return over_seeds_and_prompts(np.stack(rows))


def start_goal(aim: Aim, starts: Mapping[int, Answers]) -> float:
    """The goal of the start: its reward, a win rate of one half, or chance accuracy."""
    if aim.goal != "reward":
        return 0.5
    return float(np.mean([a.rewards[aim.reward].mean() for a in starts.values()]))


def record(aim: Aim, candidate: Candidate, points: Mapping[int, Point]) -> dict[str, Any]:
    """A candidate as plain values, with the means of all other measurements of its answers."""
    answers = [p.answers for p in points.values()]

    def mean(values: Sequence[np.ndarray]) -> float:
        return float(np.mean([total(v).mean for v in values]))

    return {
        "steps": list(candidate.steps),
        "goal": _plain(candidate.goal),
        "kl": _plain(candidate.kl),
        "within": bool(within(aim, [candidate])),
        "rewards": {name: _finite(mean([a.rewards[name] for a in answers])) for name in answers[0].rewards},
        "tokens": mean([a.tokens for a in answers]),
        "unended": mean([a.unended for a in answers]),
    }


def _plain(interval: Interval) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(interval).items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
