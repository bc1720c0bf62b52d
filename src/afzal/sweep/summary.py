"""The figures of a sweep as plain values, from which page and tables are made.

They do not depend on when or how often the command ran: a stopped and resumed sweep gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.compare.measure import Answers
from afzal.sweep.arms import BASE_NAME, Arm, resolved
from afzal.sweep.search import Search
from afzal.sweep.selection import (
    Candidate,
    Criterion,
    best,
    candidate_record,
    candidates,
    difference,
    front,
    goal_values,
    start_goal,
)
from afzal.sweep.training import Point

Points = Mapping[int, Sequence[Point]]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The chosen arm and base with fresh seeds: snapshots by arm and seed, and the start's answers by seed."""

    seeds: Sequence[int]
    points: Mapping[str, Points]
    starts: Mapping[int, Answers]
    failures: Mapping[str, str]


def summary(
    search: Search, candidates: Sequence[Candidate], chosen: Candidate | None, confirmed: Confirmation | None
) -> dict[str, Any]:
    """All figures; arms are in order of their best goal within the budget, failed ones last."""
    criterion, starts = search.criterion, search.starts()
    level = start_goal(criterion, starts)
    pareto = front(criterion, candidates, level)
    listed = {id(candidates[k]) for k in pareto["on_front"]}
    by_arm = {a.name: [c for c in candidates if c.arm == a.name] for a in search.arms}
    arms = [_arm(search, arm, by_arm[arm.name], listed) for arm in search.arms]
    return {
        "goal": {"maximize": criterion.goal, "reward": criterion.reward, "kl": criterion.kl_budget},
        "seeds": list(search.config.seeds),
        "prompts": len(next(iter(starts.values())).texts),
        "answers_per_prompt": search.config.samples,
        "start": level,
        "axes": [axis.key for axis in search.plan.axes],
        "arms": sorted(arms, key=_sort_key),
        "front": {
            "points": [{"arm": candidates[k].arm, "place": candidates[k].place} for k in pareto["on_front"]],
            "knee": None
            if pareto["knee"] is None
            else {"arm": candidates[pareto["knee"]].arm, "place": candidates[pareto["knee"]].place},
            "hypervolume": pareto["hypervolume"],
        },
        "choice": None if chosen is None else {"arm": chosen.arm, "place": chosen.place},
        "confirmation": None
        if chosen is None or confirmed is None
        else _confirmation(search, candidates, chosen, confirmed),
    }


def _arm(search: Search, arm: Arm, arm_candidates: Sequence[Candidate], on_front: set[int]) -> dict[str, Any]:
    criterion, length = search.criterion, search.lengths[arm.name]
    settings = resolved(search.plan, arm).model_dump(mode="json")
    failure = search.failures.get(arm.name)
    points = search.points.get(arm.name, {})
    rows = [
        candidate_record(criterion, c, {s: p[c.place] for s, p in points.items()}) | {"on_front": id(c) in on_front}
        for c in arm_candidates
    ]
    top = best(criterion, arm_candidates)
    return {
        "name": arm.name,
        "label": arm.label,
        "values": {axis.key: settings.get(axis.key) for axis in search.plan.axes},
        "status": "failed" if failure else "pruned" if arm.name in search.pruned else "finished",
        "why": failure.why if failure else "",
        "seeds": len(points),
        "updates": length.steps,
        "examples": length.examples,
        "tokens": length.tokens,
        "best": None if top is None else top.place,
        "candidates": rows,
    }


def _sort_key(arm: Mapping[str, Any]) -> tuple[int, float, float]:
    """The sort key of an arm: by goal if it has a candidate within the budget, then by KL, then pruned, then failed."""
    order = ("finished", "pruned", "failed").index(arm["status"])
    if order:
        return order + 1, 0.0, 0.0
    if arm["best"] is None:
        return 1, min((c["kl"]["value"] or 0.0 for c in arm["candidates"]), default=0.0), 0.0
    top = arm["candidates"][arm["best"]]
    return 0, -top["goal"]["value"], top["kl"]["value"]


def _confirmation(
    search: Search, candidates: Sequence[Candidate], chosen: Candidate, confirmed: Confirmation
) -> dict[str, Any]:
    """The choice and base on fresh seeds, at the snapshots chosen with the first seeds."""
    criterion = search.criterion
    base_candidates = [c for c in candidates if c.arm == BASE_NAME]
    base = best(criterion, base_candidates) or (base_candidates[-1] if base_candidates else None)
    body: dict[str, Any] = {
        "seeds": list(confirmed.seeds),
        "fresh_prompts": search.config.confirm_prompts is not None,
        "prompts": len(next(iter(confirmed.starts.values())).texts),
        "failures": dict(confirmed.failures),
        "start": start_goal(criterion, confirmed.starts),
        "choice": _confirmed_record(criterion, confirmed, chosen),
        "base": None if base is None else _confirmed_record(criterion, confirmed, base),
        "base_place": None if base is None else base.place,
        "difference": None,
    }
    if base is not None and chosen.arm != base.arm and body["choice"] and body["base"]:
        ours, theirs = (_points_at(confirmed, c) for c in (chosen, base))
        body["difference"] = asdict(difference(criterion, ours, theirs, confirmed.starts))
    return body


def _points_at(confirmed: Confirmation, candidate: Candidate) -> dict[int, Point]:
    """The points of a candidate's snapshot by seed; the last point of a shorter training."""
    points = confirmed.points[candidate.arm]
    return {seed: trajectory[min(candidate.place, len(trajectory) - 1)] for seed, trajectory in points.items()}


def _confirmed_record(criterion: Criterion, confirmed: Confirmation, candidate: Candidate) -> dict[str, Any] | None:
    if candidate.arm not in confirmed.points:
        return None
    points = _points_at(confirmed, candidate)
    trajectory = {seed: [point] for seed, point in points.items()}
    (remeasured,) = candidates(criterion, {candidate.arm: trajectory}, confirmed.starts)
    by_seed = [float(np.mean(goal_values(criterion, p, confirmed.starts[s]))) for s, p in points.items()]
    return candidate_record(criterion, remeasured, points) | {"by_seed": by_seed}
