"""Methods side by side at matched KL: what each had won of the reward when it had moved so far, and claims about that.

A run is a course through the plane of KL and reward, one point per evaluation. Two methods are compared where they have
moved equally far from the reference, since reward alone is bought with KL; what is left to the optimum there is the
regret. KL in nats per response, reward in the world's own measure; in both, more is what it says, not better.
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
    """A policy on its way: updates done, KL to the reference in nats, expected gold reward."""

    step: int
    kl: float
    reward: float


@dataclass(frozen=True, slots=True)
class Course:
    """One run: its method, the setting that the method was tried with, its seed, and its points in order of step.

    The first point is the reference: step 0, KL 0.
    """

    method: str
    setting: str
    seed: int
    points: tuple[Point, ...]


def reward_at(course: Course, kl: float) -> float | None:
    """The reward where a course first comes to a KL, linear between two evaluations; None when it never does.

    The first time, since a run can be stopped there: what it does after counts for its later KL.
    """
    if course.points and course.points[0].kl >= kl:
        return course.points[0].reward
    for a, b in pairwise(course.points):
        if a.kl < kl <= b.kl:
            return a.reward + (kl - a.kl) / (b.kl - a.kl) * (b.reward - a.reward)
    return None


def best_at(courses: Sequence[Course], method: str, seed: int, kl: float) -> float | None:
    """The highest :func:`reward_at` of a method over the settings it was tried with; None when none comes so far."""
    found = [reward_at(c, kl) for c in courses if (c.method, c.seed) == (method, seed)]
    return max((r for r in found if r is not None), default=None)


def regret_at(courses: Sequence[Course], method: str, seed: int, kl: float, edge: Frontier) -> float | None:
    """What :func:`best_at` leaves to the best policy of that KL; 0 is optimal, None where the method never comes."""
    reward = best_at(courses, method, seed, kl)
    return None if reward is None else edge.at(kl) - reward


def common_kl(courses: Sequence[Course], methods: Sequence[str], seeds: Sequence[int], grid: Sequence[float]) -> float:
    """The largest KL of the grid to which all the methods come in every seed; 0 when there is none."""
    reached = [k for k in grid if all(best_at(courses, m, s, k) is not None for m in methods for s in seeds)]
    return max(reached, default=0.0)


Outcome = Literal["reproduces", "does not reproduce", "not measured"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement, what became of it, and the figures it stands on.

    It reproduces when it holds in every seed; ``held`` of ``n`` says in how many it does.
    """

    text: str
    outcome: Outcome
    held: int
    n: int
    figures: str


def judge(text: str, held: Sequence[bool | None], figures: str) -> Claim:
    """A claim from what it was in each seed; None where there is nothing to judge by, and then it is not measured."""
    known = [h for h in held if h is not None]
    if not held or len(known) < len(held):
        return Claim(text, "not measured", sum(known), len(held), figures or "no figures")
    return Claim(text, "reproduces" if all(known) else "does not reproduce", sum(known), len(held), figures)


def above(
    text: str,
    courses: Sequence[Course],
    methods: tuple[str, str],
    seeds: Sequence[int],
    grid: Sequence[float],
    by: float = 0.0,
) -> Claim:
    """The claim that the first method has at least ``by`` more reward than the second, at the same KL, in every seed.

    The KL is :func:`common_kl`: not chosen by who is ahead there.
    """
    kl = common_kl(courses, methods, seeds, grid)
    if kl == 0:
        return judge(text, [None] * len(seeds), f"{methods[0]} and {methods[1]} share no KL of the grid")
    gaps = [_known(best_at(courses, methods[0], s, kl)) - _known(best_at(courses, methods[1], s, kl)) for s in seeds]
    listed = ", ".join(f"{g:+.2f}" for g in gaps)
    return judge(text, [g > by for g in gaps], f"difference at a KL of {kl:g}: {listed}; mean {np.mean(gaps):+.2f}")


def stays_low(
    text: str, courses: Sequence[Course], method: str, other: str, seeds: Sequence[int], *, kl: float, by: float
) -> Claim:
    """The claim that a method never comes to a KL, and that its highest reward is ``by`` below that of another one."""
    held: list[bool | None] = []
    said = []
    for seed in seeds:
        mine, theirs = (
            [p for c in courses if (c.method, c.seed) == (m, seed) for p in c.points] for m in (method, other)
        )
        if not mine or not theirs:
            held.append(None)
            continue
        far, best, bar = max(p.kl for p in mine), max(p.reward for p in mine), max(p.reward for p in theirs)
        held.append(far < kl and best < bar - by)
        said.append(f"{best:.2f} at most, KL up to {far:.2f}, against {bar:.2f}")
    return judge(text, held, "; ".join(said))


def table(
    courses: Sequence[Course], methods: Sequence[str], seeds: Sequence[int], grid: Sequence[float], edge: Frontier
) -> list[list[str]]:
    """Cells: a row per method, a column per KL: the mean reward over the seeds and its range, then the mean regret.

    A method that comes to a KL in some seeds only is shown with their number.
    """
    found = {(m, kl): [best_at(courses, m, s, kl) for s in seeds] for m in methods for kl in grid}
    return [[m, *(_cell(found[m, kl], edge.at(kl)) for kl in grid)] for m in methods]


def _cell(found: Sequence[float | None], optimum: float) -> str:
    known = [r for r in found if r is not None]
    if not known:
        return ""
    few = f" ({len(known)} of {len(found)})" if len(known) < len(found) else ""
    return f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f}), {optimum - np.mean(known):.2f}{few}"


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a method does not come to this KL")
    return value
