"""The figures of a comparison from its measured answers: intervals over seeds, matched KL, win rates, cost.

The result is plain values; page, picture and tables are made only from it, so that they agree. Every mean is a sum over
a count within a seed; seeds have equal weight. All seeds and methods answer the same prompts, so comparisons of two of
them use differences of the same seed on the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from afzal.compare.measure import Answers
from afzal.config import START, CompareConfig, Entry
from afzal.stats.intervals import Interval, over_seeds
from afzal.stats.policy_comparison import (
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


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost up to a point, including required stages: seconds on this machine, tokens trained on, and tokens
    generated for training."""

    seconds: float = 0.0
    tokens: int = 0
    generated: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens, self.generated + other.generated)


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A policy along a method's training: ``step`` counts updates, or is the n of best-of-n. Each answer took ``draws``
    draws: n for best-of-n."""

    step: int
    answers: Answers
    cost: Cost
    draws: int = 1


Trajectory = Sequence[Point]
"""The points of one method and seed, in order of step."""


def summary(
    config: CompareConfig,
    policies: Sequence[Entry],
    starts: Mapping[int, Answers],
    trajectories: Mapping[tuple[str, int], Trajectory],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """All figures.

    Args:
        policies: the compared entries, in order.
        starts: the start model's answers by seed.
        trajectories: by entry name and seed; an entry may lack seeds.
        prompts: texts of the shown prompts.
    """
    true_reward = next(iter(config.rewards))
    by_seed = {
        e.name: {s: trajectories[e.name, s] for s in config.seeds if (e.name, s) in trajectories} for e in policies
    }
    chosen = chosen_points(config, policies, trajectories)
    from_start = {
        name: {s: _with_start(starts[s], c) for s, c in of_entry.items()} for name, of_entry in by_seed.items()
    }
    levels = config.matched_kl or matched_levels(
        [min(map(_largest_kl, w.values()), default=0.0) for w in from_start.values()]
    )
    methods = [
        {
            "name": e.name,
            "label": e.label,
            "kind": e.kind,
            "needs": list(e.needs),
            "kl_is_bound": e.kind == "best_of",
            "points": [
                _record(config, s, p, starts[s], true_reward)
                for s, trajectory in by_seed[e.name].items()
                for p in trajectory
            ],
            "curve": _curve(by_seed[e.name], starts, true_reward),
            "judged": _figures(chosen[e.name], starts, true_reward),
            "matched": [_reward_at_kl(level, from_start[e.name], true_reward) for level in levels],
            "turned": _overoptimised(by_seed[e.name], true_reward),
        }
        for e in policies
    ]
    start_by_seed = start_points(starts)
    return {
        "rewards": list(config.rewards),
        "seeds": list(config.seeds),
        "prompts": len(next(iter(starts.values())).texts),
        "answers_per_prompt": config.samples,
        "matched_kl": levels,
        "start": _figures(start_by_seed, starts, true_reward),
        "start_points": [_record(config, s, p, starts[s], true_reward) for s, p in start_by_seed.items()],
        "methods": methods,
        "differences": [row for level in levels for row in _differences(level, from_start, true_reward)],
        "wins": _table_of_wins({START: start_by_seed, **chosen}, true_reward),
        "samples": _side_by_side(config, policies, chosen, starts, prompts),
    }


def chosen_points(
    config: CompareConfig, policies: Sequence[Entry], trajectories: Mapping[tuple[str, int], Trajectory]
) -> dict[str, dict[int, Point | None]]:
    """The point at which each policy is judged, by name and seed; None if no point is within the budget."""
    return {
        e.name: {
            s: _final_point(trajectories[e.name, s], config.kl_budget)
            for s in config.seeds
            if (e.name, s) in trajectories
        }
        for e in policies
    }


def start_points(starts: Mapping[int, Answers]) -> dict[int, Point]:
    """The start as a policy, by seed."""
    return {s: Point(0, a, Cost()) for s, a in starts.items()}


def _final_point(trajectory: Trajectory, budget: float | None) -> Point | None:
    """The last point, or the last one within the budget; it is never selected by reward."""
    within_budget = [p for p in trajectory if budget is None or total(p.answers.kl).mean <= budget]
    return within_budget[-1] if within_budget else None


def _with_start(start: Answers, trajectory: Trajectory) -> list[Point]:
    return [Point(0, start, Cost()), *trajectory]


def _mean_kls(trajectory: Sequence[Point]) -> list[float]:
    return [total(p.answers.kl).mean for p in trajectory]


def _largest_kl(trajectory: Sequence[Point]) -> float:
    return reached(_mean_kls(trajectory))


def _win_rates(ours: Point, theirs: Point, true_reward: str) -> np.ndarray:
    """``[X]`` win rates on each prompt, over answer pairs without shared random numbers (within a seed all policies
    draw with the same ones)."""
    a, b = ours.answers.rewards[true_reward], theirs.answers.rewards[true_reward]
    return wins(a, b, same_draws(a.shape[1], b.shape[1], ours.draws, theirs.draws))


def _record(config: CompareConfig, seed: int, point: Point, start: Answers, true_reward: str) -> dict[str, Any]:
    """The record of one policy and seed: sums, counts, and intervals over prompts."""
    a = point.answers
    shares = _win_rates(point, Point(0, start, Cost()), true_reward)
    gain = bootstrap(
        differences(a.rewards[true_reward], start.rewards[true_reward]), resamples=config.resamples, seed=seed
    )
    return {
        "seed": seed,
        "step": point.step,
        "rewards": {name: _total(values) for name, values in a.rewards.items()},
        "reward_se": standard_error(a.rewards[true_reward]),
        "kl": _total(a.kl),
        "kl_se": standard_error(a.kl),
        "tokens": _total(a.tokens),
        "unended": _total(a.unended),
        "gain": asdict(gain),
        "win": asdict(share_of_wins(shares, a.rewards[true_reward].shape[1])),
        "drawn_per_answer": a.drawn_tokens,
        "cost": asdict(point.cost),
    }


def _total(values: np.ndarray) -> dict[str, float]:
    amount: Total = total(values)
    return {"sum": amount.sum, "count": amount.count, "mean": amount.mean}


def _curve(
    trajectories: Mapping[int, Trajectory], starts: Mapping[int, Answers], true_reward: str
) -> list[dict[str, Any]]:
    """Figures over seeds at each step, with the start as step 0."""
    by_step: dict[int, dict[int, Point | None]] = {0: {s: Point(0, starts[s], Cost()) for s in trajectories}}
    for seed, trajectory in trajectories.items():
        for point in trajectory:
            by_step.setdefault(point.step, {})[seed] = point
    return [{"step": step, **_figures(points, starts, true_reward)} for step, points in sorted(by_step.items())]


def _figures(points: Mapping[int, Point | None], starts: Mapping[int, Answers], true_reward: str) -> dict[str, Any]:
    """Intervals over the seeds that have a point; empty without any."""
    present = {s: p for s, p in points.items() if p is not None}
    if not present:
        return {"seeds": 0}

    def over(figure: Callable[[int, Point], float]) -> dict[str, Any]:
        interval: Interval = over_seeds([figure(s, p) for s, p in present.items()])
        return asdict(interval)

    def paired(by_prompt: Callable[[int, Point], np.ndarray]) -> dict[str, Any]:
        return asdict(over_seeds_and_prompts(np.stack([by_prompt(s, p) for s, p in present.items()])))

    def mean(name: str) -> dict[str, Any]:
        return over(lambda _, p: total(getattr(p.answers, name)).mean)

    names = next(iter(present.values())).answers.rewards
    return {
        "seeds": len(present),
        "steps": [p.step for p in present.values()],
        "rewards": {n: over(lambda _, p, n=n: total(p.answers.rewards[n]).mean) for n in names},
        "gain": paired(lambda s, p: differences(p.answers.rewards[true_reward], starts[s].rewards[true_reward])),
        "win": paired(lambda s, p: _win_rates(p, Point(0, starts[s], Cost()), true_reward)),
        "kl": mean("kl"),
        "tokens": mean("tokens"),
        "unended": mean("unended"),
        "drawn_per_answer": over(lambda _, p: p.answers.drawn_tokens),
        "seconds": over(lambda _, p: p.cost.seconds),
        "trained_tokens": over(lambda _, p: float(p.cost.tokens)),
        "generated_tokens": over(lambda _, p: float(p.cost.generated)),
    }


def _reward_at_kl(level: float, trajectories: Mapping[int, Sequence[Point]], true_reward: str) -> dict[str, Any]:
    """The reward at a KL over the seeds, of which ``reached`` of ``of`` get there. If some do not, there is no value,
    since the others are not a fair sample."""
    values = [
        rewards.mean()
        for trajectory in trajectories.values()
        if (rewards := _rewards_at(level, trajectory, true_reward)) is not None
    ]
    facts = {"kl": level, "reached": len(values), "of": len(trajectories)}
    if not values or len(values) < len(trajectories):
        return facts | {"value": None, "low": None, "high": None, "n": 0}
    return facts | asdict(over_seeds([float(v) for v in values]))


def _rewards_at(level: float, trajectory: Sequence[Point], true_reward: str) -> np.ndarray | None:
    """``[X]`` mean rewards on each prompt at the KL; None if the training does not reach it."""
    weights = at_kl(_mean_kls(trajectory), level)
    return None if weights is None else weights @ np.stack([p.answers.rewards[true_reward].mean(1) for p in trajectory])


def _differences(
    level: float, trajectories: Mapping[str, Mapping[int, Sequence[Point]]], true_reward: str
) -> list[dict[str, Any]]:
    """Each method's reward at a KL less that of each later method, paired by seed and prompt, if all seeds of both
    reach it."""
    rewards_by_name = {
        name: {s: _rewards_at(level, trajectory, true_reward) for s, trajectory in of_method.items()}
        for name, of_method in trajectories.items()
    }
    complete = {
        name: rewards
        for name, rewards in rewards_by_name.items()
        if rewards and all(r is not None for r in rewards.values())
    }
    rows = []
    for (ours, our_rewards), (theirs, their_rewards) in combinations(complete.items(), 2):
        pairs = [(our_rewards[s], their_rewards[s]) for s in our_rewards if s in their_rewards]
        if pairs:
            gap = over_seeds_and_prompts(np.stack([a - b for a, b in pairs if a is not None and b is not None]))
            rows.append({"kl": level, "ours": ours, "theirs": theirs, **asdict(gap)})
    return rows


def _overoptimised(trajectories: Mapping[int, Trajectory], true_reward: str) -> list[dict[str, Any]]:
    """Rewards that clearly rose from the true reward's best point to the last one, while the true reward clearly fell.

    The best point has the highest mean on every other prompt; the changes since then are measured on the remaining
    prompts. Otherwise choosing a chance peak would itself produce a fall.
    """
    if not trajectories or any(len(c) < 2 for c in trajectories.values()):
        return []
    ends = []
    for trajectory in trajectories.values():
        height = [float(p.answers.rewards[true_reward][::2].mean()) for p in trajectory]
        ends.append((trajectory[max(range(len(trajectory)), key=height.__getitem__)].answers, trajectory[-1].answers))
    if any(peak is last or len(peak.rewards[true_reward]) < 4 for peak, last in ends):
        return []

    def change(name: str) -> Interval:
        later = [last.rewards[name][1::2].mean(1) - peak.rewards[name][1::2].mean(1) for peak, last in ends]
        return over_seeds_and_prompts(np.stack(later))

    def means(name: str, k: int) -> float:
        return float(np.mean([e[k].rewards[name].mean() for e in ends]))

    if change(true_reward).ends[1] >= 0:
        return []
    return [
        {"reward": n, "before": [means(true_reward, 0), means(n, 0)], "after": [means(true_reward, 1), means(n, 1)]}
        for n in ends[0][0].rewards
        if n != true_reward and change(n).ends[0] > 0
    ]


def _table_of_wins(chosen: Mapping[str, Mapping[int, Point | None]], true_reward: str) -> list[dict[str, Any]]:
    """For every ordered pair of policies, how often the first's answer has the higher true reward; ties count half."""
    rows = []
    for ours, our_points in chosen.items():
        for theirs, their_points in chosen.items():
            pairs = [(p, q) for s, p in our_points.items() if p is not None and (q := their_points.get(s)) is not None]
            if ours != theirs and pairs:
                interval = over_seeds_and_prompts(np.stack([_win_rates(p, q, true_reward) for p, q in pairs]))
                rows.append({"ours": ours, "theirs": theirs, **asdict(interval)})
    return rows


def _side_by_side(
    config: CompareConfig,
    policies: Sequence[Entry],
    chosen: Mapping[str, Mapping[int, Point | None]],
    starts: Mapping[int, Answers],
    prompts: Sequence[str],
) -> list[dict[str, Any]]:
    """Every policy's first answer to the first prompts, for the first seed."""
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
