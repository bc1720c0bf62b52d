"""The trainings of a sweep in order: all arms at once, or each one proposed or pruned from earlier results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from afzal.compare.measure import Answers
from afzal.compare.trainings import Stage, stages_of
from afzal.config import ADAPTIVE, CompareConfig, SweepConfig
from afzal.sweep import workers
from afzal.sweep.arms import BASE_NAME, Arm, Plan, arms_of, distinct, load_arms, save_arms, wanted_arms
from afzal.sweep.proposals import is_hopeless, optuna_module, propose
from afzal.sweep.selection import Criterion, candidates, score
from afzal.sweep.training import Evaluator, Failure, Point, Say
from afzal.sweep.training_length import Length, comparison_config, training_lengths


@dataclass(slots=True)
class Search:
    """The state of a running sweep.

    Attributes:
        arms: the arms so far, base first.
        lengths: each arm's training length, by name.
        failures: failed arms with the reason, by name.
        pruned: the number of seeds after which an arm was pruned, by name.
        points: snapshots of the trainings, by name and seed.
    """

    config: SweepConfig
    plan: Plan
    evaluator: Evaluator
    jobs: int
    say: Say
    arms: list[Arm] = field(default_factory=list)
    lengths: dict[str, Length] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    pruned: dict[str, int] = field(default_factory=dict)
    points: dict[str, dict[int, list[Point]]] = field(default_factory=dict)

    @property
    def criterion(self) -> Criterion:
        """What ranks the arms."""
        return Criterion(self.config.maximized, next(iter(self.evaluator.config.rewards)), self.config.kl_budget)

    @property
    def complete_points(self) -> dict[str, dict[int, list[Point]]]:
        """The snapshots of the arms that neither failed nor were pruned."""
        return {name: p for name, p in self.points.items() if name not in self.failures and name not in self.pruned}

    def trainings(self, arms: Sequence[Arm], seeds: Sequence[int]) -> CompareConfig:
        """The trainings of these arms as a comparison."""
        if missing := [a for a in arms if a.name not in self.lengths]:
            self.lengths |= training_lengths(self.config, self.plan, missing)
        return comparison_config(self.config, self.plan, arms, self.lengths, seeds)

    def starts(self) -> dict[int, Answers]:
        """The start's answers by seed."""
        return {seed: self.evaluator.start(seed) for seed in self.config.seeds}


def explore(search: Search, more: int) -> None:
    """Train and measure every arm with every seed.

    Args:
        more: arms to add to those of earlier commands.
    """
    config, plan = search.config, search.plan
    adaptive = config.search in ADAPTIVE
    if adaptive or config.prune is not None:
        optuna_module()
    earlier = load_arms(config, plan)
    search.arms[:] = distinct(plan, earlier, ()) if adaptive else arms_of(config, plan, more)
    if search.arms != earlier:
        save_arms(config, plan, search.arms, finished=False)
    if adaptive:
        _train_proposals(search, wanted_arms(config, search.arms, more) or 0)
    elif config.prune is not None:
        for arm in search.arms:
            _seed_by_seed(search, arm)
    else:
        train(search, search.arms)
    save_arms(config, plan, search.arms, finished=True)


def train(search: Search, arms: Sequence[Arm]) -> None:
    """Train and measure every seed of these arms."""
    comparison = search.trainings(arms, search.config.seeds)
    record_outcomes(search, stages_of(comparison), run(search, search.evaluator, comparison, stages_of(comparison)))


def run(search: Search, evaluator: Evaluator, comparison: CompareConfig, stages: Sequence[Stage]) -> workers.Outcome:
    """Run trainings with their measurements, sequentially or in parallel."""
    if search.jobs > 1 and len(stages) > 1:
        return workers.run_in_parallel(evaluator, comparison, stages, search.jobs, search.say)
    return workers.run_sequentially(evaluator, stages, search.say)


def record_outcomes(search: Search, stages: Sequence[Stage], outcome: workers.Outcome) -> None:
    """Record the outcomes of trainings."""
    for stage in stages:
        name, failure = stage.entry.name, outcome[stage.name]
        if failure is not None:
            search.failures.setdefault(name, failure)
        else:
            search.points.setdefault(name, {})[stage.seed] = search.evaluator.trajectory(stage)


def _train_proposals(search: Search, n_arms: int) -> None:
    """Train arms one by one, each proposed from the scores of all previous ones."""
    config, plan = search.config, search.plan
    for arm in search.arms:
        _train_arm(search, arm)
    while len(search.arms) <= n_arms:
        scores = ((a.values, score_of(search, a, len(config.seeds))) for a in search.arms if a.name != BASE_NAME)
        scored = [(values, s) for values, s in scores if s is not None]
        draws = count(config.search_seed * 1_000_003 + len(search.arms) * 1009)  # separate seeds for each arm
        arms = distinct(plan, search.arms, (propose(plan.axes, k, scored) for k in draws), len(search.arms) + 1)
        if len(arms) == len(search.arms):
            search.say("tpe: the space has no further arm")
            return
        search.arms.append(arms[-1])
        save_arms(config, plan, search.arms, finished=False)
        _train_arm(search, arms[-1])


def _train_arm(search: Search, arm: Arm) -> None:
    if search.config.prune is None:
        train(search, [arm])
    else:
        _seed_by_seed(search, arm)


def _seed_by_seed(search: Search, arm: Arm) -> None:
    """Train one arm, which can be pruned between its seeds."""
    seeds = search.config.seeds
    comparison = search.trainings([arm], seeds)
    for k, stage in enumerate(stages_of(comparison), 1):
        record_outcomes(search, [stage], run(search, search.evaluator, comparison, [stage]))
        if arm.name in search.failures:
            return
        if k < len(seeds) and _is_hopeless(search, arm, k):
            search.pruned[arm.name] = k
            search.say(f"{arm.name}: pruned after {k} of {len(seeds)} seeds")
            return


def _is_hopeless(search: Search, arm: Arm, seeds: int) -> bool:
    def scores(name: str, n_seeds: int) -> list[float]:
        seed_scores = [score_of(search, Arm(name, {}), k) for k in range(1, n_seeds + 1)]
        return [s for s in seed_scores if s is not None]

    finished = [
        name
        for name, points in search.complete_points.items()
        if name != arm.name and len(points) == len(search.config.seeds)
    ]
    return is_hopeless(scores(arm.name, seeds), [scores(name, len(search.config.seeds)) for name in finished])


def score_of(search: Search, arm: Arm, seeds: int) -> float | None:
    """An arm's score over its first ``seeds`` seeds; None if it failed."""
    points: Mapping[int, list[Point]] = search.points.get(arm.name, {})
    if arm.name in search.failures or not points:
        return None
    first_points = dict(list(points.items())[:seeds])
    return score(search.criterion, candidates(search.criterion, {arm.name: first_points}, search.starts()))
