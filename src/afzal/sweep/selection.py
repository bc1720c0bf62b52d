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

Trajectory = Sequence[Point]
Trajectories = Mapping[str, Mapping[int, Trajectory]]
"""The snapshots of each training, by arm and seed."""


@dataclass(frozen=True, slots=True)
class Criterion:
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
    def is_finite(self) -> bool:
        """Whether both figures are finite."""
        return math.isfinite(self.goal.value) and math.isfinite(self.kl.value)


def goal_values(criterion: Criterion, point: Point, start: Answers) -> np.ndarray:
    """``[X]`` the goal on each prompt; ``[1]`` for accuracy, whose prompts are those of the held-out pairs."""
    if criterion.goal == "accuracy":
        return np.array([point.accuracy[0] if point.accuracy is not None else math.nan])
    rewards = point.answers.rewards[criterion.reward]
    if criterion.goal == "reward":
        return rewards.mean(1)
    return wins(
        rewards, start.rewards[criterion.reward], same_draws(rewards.shape[1], start.rewards[criterion.reward].shape[1])
    )


def candidates(criterion: Criterion, trajectories: Trajectories, starts: Mapping[int, Answers]) -> list[Candidate]:
    """Every snapshot of every arm, arms in order and snapshots by step.

    Args:
        trajectories: those of arms with all their seeds.
        starts: the start's answers by seed.
    """
    return [
        _candidate(criterion, arm, place, {seed: trajectory[place] for seed, trajectory in by_seed.items()}, starts)
        for arm, by_seed in trajectories.items()
        for place in range(min(len(trajectory) for trajectory in by_seed.values()))
    ]


def _candidate(
    criterion: Criterion, arm: str, place: int, points: Mapping[int, Point], starts: Mapping[int, Answers]
) -> Candidate:
    goal = _goal_interval(
        criterion, [goal_values(criterion, p, starts[s]) for s, p in points.items()], next(iter(points.values()))
    )
    kl = over_seeds_and_prompts(np.stack([p.answers.kl.mean(1) for p in points.values()]))
    return Candidate(arm, place, tuple(p.step for p in points.values()), goal, kl)


def _goal_interval(criterion: Criterion, values: Sequence[np.ndarray], first: Point) -> Interval:
    """The mean goal over seeds and prompts; the accuracy of a single seed has its own interval."""
    if criterion.goal != "accuracy":
        return over_seeds_and_prompts(np.stack(values))
    if len(values) == 1 and first.accuracy is not None:
        return Interval(*first.accuracy, 1)
    return over_seeds([float(v[0]) for v in values])


def within_budget(criterion: Criterion, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose mean KL is within the budget."""
    return [c for c in candidates if c.is_finite and c.kl.value <= criterion.kl_budget]


def best(criterion: Criterion, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest goal within the budget (then least KL, then the first); None without any."""
    return max(within_budget(criterion, candidates), key=lambda c: (c.goal.value, -c.kl.value), default=None)


def score(criterion: Criterion, candidates: Sequence[Candidate]) -> float | None:
    """One number for an arm, used to propose and prune arms: its best goal within the budget.

    An arm that is never within the budget scores the goal at its least KL less the excess nats, so that of two such
    arms the closer one is better. None if nothing is known.
    """
    chosen = best(criterion, candidates)
    if chosen is not None:
        return chosen.goal.value
    nearest = min((c for c in candidates if c.is_finite), key=lambda c: c.kl.value, default=None)
    return None if nearest is None else nearest.goal.value - (nearest.kl.value - criterion.kl_budget)


def front(criterion: Criterion, candidates: Sequence[Candidate], start: float) -> dict[str, Any]:
    """The candidates on the front of KL and goal, its knee, and the dominated area.

    Args:
        start: the goal of the start, whose KL is 0: the lower edge of the area, which extends to the budget.
    """
    kls, goals = (np.array([getattr(c, name).value for c in candidates], float) for name in ("kl", "goal"))
    place = knee(kls, goals)
    return {
        "on_front": np.flatnonzero(on_front(kls, goals)).tolist(),
        "knee": place,
        "hypervolume": hypervolume(kls, goals, reference=(criterion.kl_budget, start)),
    }


def difference(
    criterion: Criterion, ours: Mapping[int, Point], theirs: Mapping[int, Point], starts: Mapping[int, Answers]
) -> Interval:
    """One policy's goal less another's, on the same seeds and prompts."""
    rows = [goal_values(criterion, ours[s], starts[s]) - goal_values(criterion, theirs[s], starts[s]) for s in ours]
    if criterion.goal == "accuracy":
        return over_seeds([float(row[0]) for row in rows])
    return over_seeds_and_prompts(np.stack(rows))


def start_goal(criterion: Criterion, starts: Mapping[int, Answers]) -> float:
    """The goal of the start: its reward, a win rate of one half, or chance accuracy."""
    if criterion.goal != "reward":
        return 0.5
    return float(np.mean([a.rewards[criterion.reward].mean() for a in starts.values()]))


def candidate_record(criterion: Criterion, candidate: Candidate, points: Mapping[int, Point]) -> dict[str, Any]:
    """A candidate as plain values, with the means of all other measurements of its answers."""
    answers = [p.answers for p in points.values()]

    def mean(values: Sequence[np.ndarray]) -> float:
        return float(np.mean([total(v).mean for v in values]))

    return {
        "steps": list(candidate.steps),
        "goal": _plain(candidate.goal),
        "kl": _plain(candidate.kl),
        "within": bool(within_budget(criterion, [candidate])),
        "rewards": {name: _finite(mean([a.rewards[name] for a in answers])) for name in answers[0].rewards},
        "tokens": mean([a.tokens for a in answers]),
        "unended": mean([a.unended for a in answers]),
    }


def _plain(interval: Interval) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(interval).items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
