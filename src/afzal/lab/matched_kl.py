"""Compare methods at matched KL: the reward of each at the same distance from the reference, and claims about it.

A run is a trajectory through the plane of KL and reward, with one point per evaluation. Two methods are compared at
equal distances from the reference, since reward is bought with KL; the gap to the optimum at that KL is the regret. KL
is in nats per response, reward in the unit of the language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from afzal.lab.exact import Frontier


@dataclass(frozen=True, slots=True)
class Point:
    """A policy during training: updates so far, KL to the reference in nats, expected gold reward."""

    step: int
    kl: float
    reward: float


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One run: its method, the tried setting, its seed, and its points in order of step.

    The first point is the reference: step 0, KL 0.
    """

    method: str
    setting: str
    seed: int
    points: tuple[Point, ...]


def reward_at(trajectory: Trajectory, kl: float) -> float | None:
    """The reward at which a trajectory first reaches a KL, interpolated linearly; None if it never does.

    The first time counts, since a run can be stopped there; its later points count for larger KLs.
    """
    if trajectory.points and trajectory.points[0].kl >= kl:
        return trajectory.points[0].reward
    for a, b in pairwise(trajectory.points):
        if a.kl < kl <= b.kl:
            return a.reward + (kl - a.kl) / (b.kl - a.kl) * (b.reward - a.reward)
    return None


def best_at(trajectories: Sequence[Trajectory], method: str, seed: int, kl: float) -> float | None:
    """The highest :func:`reward_at` of a method over its settings; None if none reaches the KL."""
    rewards = [reward_at(c, kl) for c in trajectories if (c.method, c.seed) == (method, seed)]
    return max((r for r in rewards if r is not None), default=None)


def regret_at(trajectories: Sequence[Trajectory], method: str, seed: int, kl: float, edge: Frontier) -> float | None:
    """The gap from :func:`best_at` to the best policy at that KL; 0 is optimal, None if the method never reaches it."""
    reward = best_at(trajectories, method, seed, kl)
    return None if reward is None else edge.at(kl) - reward


def common_kl(
    trajectories: Sequence[Trajectory], methods: Sequence[str], seeds: Sequence[int], grid: Sequence[float]
) -> float:
    """The largest KL of the grid that all methods reach with every seed; 0 if there is none."""
    reached = [k for k in grid if all(best_at(trajectories, m, s, k) is not None for m in methods for s in seeds)]
    return max(reached, default=0.0)


Outcome = Literal["reproduces", "does not reproduce", "not measured"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement, its outcome, and the figures behind it.

    It reproduces if it holds in every seed; it does in ``held`` of ``n``.
    """

    text: str
    outcome: Outcome
    held: int
    n: int
    figures: str


def claim_from_seeds(text: str, held: Sequence[bool | None], figures: str) -> Claim:
    """A claim from its outcome in each seed; a seed without figures is None, and the claim is then not measured."""
    measured = [h for h in held if h is not None]
    if not held or len(measured) < len(held):
        return Claim(text, "not measured", sum(measured), len(held), figures or "no figures")
    return Claim(text, "reproduces" if all(measured) else "does not reproduce", sum(measured), len(held), figures)


def claim_above(
    text: str,
    trajectories: Sequence[Trajectory],
    methods: tuple[str, str],
    seeds: Sequence[int],
    grid: Sequence[float],
    by: float = 0.0,
) -> Claim:
    """The claim that the first method has at least ``by`` more reward than the second, at the same KL, in every seed.

    The KL is :func:`common_kl`, so it does not depend on which method is ahead.
    """
    kl = common_kl(trajectories, methods, seeds, grid)
    if kl == 0:
        return claim_from_seeds(text, [None] * len(seeds), f"{methods[0]} and {methods[1]} share no KL of the grid")
    gaps = [
        _require(best_at(trajectories, methods[0], s, kl)) - _require(best_at(trajectories, methods[1], s, kl))
        for s in seeds
    ]
    listed = ", ".join(f"{g:+.2f}" for g in gaps)
    return claim_from_seeds(
        text, [g > by for g in gaps], f"difference at a KL of {kl:g}: {listed}; mean {np.mean(gaps):+.2f}"
    )


def claim_stays_low(
    text: str,
    trajectories: Sequence[Trajectory],
    method: str,
    other: str,
    seeds: Sequence[int],
    *,
    kl: float,
    by: float,
) -> Claim:
    """The claim that a method never reaches a KL, and that its highest reward is ``by`` below another method's."""
    held: list[bool | None] = []
    sentences = []
    for seed in seeds:
        points, other_points = (
            [p for c in trajectories if (c.method, c.seed) == (m, seed) for p in c.points] for m in (method, other)
        )
        if not points or not other_points:
            held.append(None)
            continue
        largest_kl, highest, other_highest = (
            max(p.kl for p in points),
            max(p.reward for p in points),
            max(p.reward for p in other_points),
        )
        held.append(largest_kl < kl and highest < other_highest - by)
        sentences.append(f"{highest:.2f} at most, KL up to {largest_kl:.2f}, against {other_highest:.2f}")
    return claim_from_seeds(text, held, "; ".join(sentences))


def table(
    trajectories: Sequence[Trajectory],
    methods: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[float],
    edge: Frontier,
) -> list[list[str]]:
    """Table cells, with a row per method and a column per KL: mean reward over the seeds, its range, and mean regret.

    If only some seeds of a method reach a KL, their number is shown.
    """
    rewards = {(m, kl): [best_at(trajectories, m, s, kl) for s in seeds] for m in methods for kl in grid}
    return [[m, *(_cell(rewards[m, kl], edge.at(kl)) for kl in grid)] for m in methods]


def _cell(rewards: Sequence[float | None], optimum: float) -> str:
    reached = [r for r in rewards if r is not None]
    if not reached:
        return ""
    coverage = f" ({len(reached)} of {len(rewards)})" if len(reached) < len(rewards) else ""
    return (
        f"{np.mean(reached):.2f} ({min(reached):.2f} to {max(reached):.2f}), {optimum - np.mean(reached):.2f}{coverage}"
    )


def _require(value: float | None) -> float:
    if value is None:
        raise ValueError("a method does not reach this KL")
    return value
