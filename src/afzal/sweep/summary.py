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
from afzal.sweep.selection import Aim, Candidate, best, candidates, difference, front, record, start_goal, values_of
from afzal.sweep.training import Point

Points = Mapping[int, Sequence[Point]]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The chosen arm and base with fresh seeds: snapshots by arm and seed, and the start's answers by seed."""

    seeds: Sequence[int]
    points: Mapping[str, Points]
    starts: Mapping[int, Answers]
    failures: Mapping[str, str]


def summary(
    search: Search, candidates: Sequence[Candidate], chosen: Candidate | None, confirmed: Confirmed | None
) -> dict[str, Any]:
    """All figures; arms are in order of their best goal within the budget, failed ones last."""
    aim, starts = search.aim, search.starts()
    level = start_goal(aim, starts)
    on = front(aim, candidates, level)
    listed = {id(candidates[k]) for k in on["on_front"]}
    by_arm = {a.name: [c for c in candidates if c.arm == a.name] for a in search.arms}
    arms = [_arm(search, arm, by_arm[arm.name], listed) for arm in search.arms]
    return {
        "goal": {"maximize": aim.goal, "reward": aim.reward, "kl": aim.kl_budget},
        "seeds": list(search.config.seeds),
        "prompts": len(next(iter(starts.values())).texts),
        "answers_per_prompt": search.config.samples,
        "start": level,
        "axes": [axis.key for axis in search.plan.axes],
        "arms": sorted(arms, key=_place),
        "front": {
            "points": [{"arm": candidates[k].arm, "place": candidates[k].place} for k in on["on_front"]],
            "knee": None
            if on["knee"] is None
            else {"arm": candidates[on["knee"]].arm, "place": candidates[on["knee"]].place},
            "hypervolume": on["hypervolume"],
        },
        "choice": None if chosen is None else {"arm": chosen.arm, "place": chosen.place},
        "confirmation": None
        if chosen is None or confirmed is None
        else _confirmation(search, candidates, chosen, confirmed),
    }


def _arm(search: Search, arm: Arm, own: Sequence[Candidate], on_front: set[int]) -> dict[str, Any]:
    aim, length = search.aim, search.lengths[arm.name]
    settings = resolved(search.plan, arm).model_dump(mode="json")
    failure = search.failures.get(arm.name)
    points = search.points.get(arm.name, {})
    rows = [record(aim, c, {s: p[c.place] for s, p in points.items()}) | {"on_front": id(c) in on_front} for c in own]
    top = best(aim, own)
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


def _place(arm: Mapping[str, Any]) -> tuple[int, float, float]:
    """The sort key of an arm: by goal if it has a candidate within the budget, then by KL, then pruned, then failed."""
    order = ("finished", "pruned", "failed").index(arm["status"])
    if order:
        return order + 1, 0.0, 0.0
    if arm["best"] is None:
        return 1, min((c["kl"]["value"] or 0.0 for c in arm["candidates"]), default=0.0), 0.0
    top = arm["candidates"][arm["best"]]
    return 0, -top["goal"]["value"], top["kl"]["value"]


def _confirmation(
    search: Search, candidates: Sequence[Candidate], chosen: Candidate, confirmed: Confirmed
) -> dict[str, Any]:
    """The choice and base on fresh seeds, at the snapshots chosen with the first seeds."""
    aim = search.aim
    of_base = [c for c in candidates if c.arm == BASE_NAME]
    base = best(aim, of_base) or (of_base[-1] if of_base else None)
    body: dict[str, Any] = {
        "seeds": list(confirmed.seeds),
        "fresh_prompts": search.config.confirm_prompts is not None,
        "prompts": len(next(iter(confirmed.starts.values())).texts),
        "failures": dict(confirmed.failures),
        "start": start_goal(aim, confirmed.starts),
        "choice": _again(aim, confirmed, chosen),
        "base": None if base is None else _again(aim, confirmed, base),
        "base_place": None if base is None else base.place,
        "difference": None,
    }
    if base is not None and chosen.arm != base.arm and body["choice"] and body["base"]:
        ours, theirs = (_at(confirmed, c) for c in (chosen, base))
        body["difference"] = asdict(difference(aim, ours, theirs, confirmed.starts))
    return body


def _at(confirmed: Confirmed, candidate: Candidate) -> dict[int, Point]:
    """The points of a candidate's snapshot by seed; the last point of a shorter training."""
    points = confirmed.points[candidate.arm]
    return {seed: course[min(candidate.place, len(course) - 1)] for seed, course in points.items()}


def _again(aim: Aim, confirmed: Confirmed, candidate: Candidate) -> dict[str, Any] | None:
    if candidate.arm not in confirmed.points:
        return None
    points = _at(confirmed, candidate)
    course = {seed: [point] for seed, point in points.items()}
    (again,) = candidates(aim, {candidate.arm: course}, confirmed.starts)
    by_seed = [float(np.mean(values_of(aim, p, confirmed.starts[s]))) for s, p in points.items()]
    return record(aim, again, points) | {"by_seed": by_seed}
