"""A comparison of several methods: train or reuse each, measure all in the same way, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from afzal import report, runs
from afzal.compare.cost import cost_at, required_cost
from afzal.compare.folder import claimed, study_date
from afzal.compare.inputs import open_inputs
from afzal.compare.judge_agreement import compare_judges
from afzal.compare.measure import (
    Answers,
    MeasurementSetup,
    best_of_answers,
    measure_snapshots,
    set_up,
    snapshots,
    start_answers,
)
from afzal.compare.summary import Point, Trajectory, chosen_points, start_points, summary
from afzal.compare.trainings import Stage, State, ensure, folders, stages_of
from afzal.config import START, CompareConfig, Entry, dump, entries, substituted
from afzal.data.turns import full_text
from afzal.hashes import content_hash
from afzal.rewards.source import Rewarder, reward_source
from afzal.runs import torchrun

Say = Callable[[str], None]


def compare(config: CompareConfig, *, say: Say = print) -> Path:
    """Run the comparison that ``config`` describes and return its page.

    Finished work is reused if its settings and inputs are the same, and refused by name if not, so the same command
    resumes where it stopped.

    Raises:
        AfzalError: a fault of the input; :class:`~afzal.recipes.train.Stopped` when a signal ended a training.
    """
    torchrun.require_one_process("afzal compare")
    with study_date(config.out) as date:
        return _compare(config, say, date)


def _compare(config: CompareConfig, say: Say, date: str) -> Path:
    stages = stages_of(config)
    open_inputs(config, stages)
    out = Path(config.out)
    with claimed(out, "compare.yaml", dump(config), date):
        states = _ensure_trainings(stages, config, say)
        setup = set_up(config)
        policies = [e for e in entries(config) if e.is_policy]
        starts, trajectories = _measure_policies(setup, policies, stages, say)
        shown_prompts = [full_text(p) for p in setup.prompts[: config.show_prompts]]
        body = summary(config, policies, starts, trajectories, shown_prompts)
        chosen = {**chosen_points(config, policies, trajectories), START: start_points(starts)}
        body |= compare_judges(config, chosen, setup.prompts, say, setup.columns)
        body |= {
            "settings": config.model_dump(mode="json"),
            "runs": {f"{s.entry.name}-{s.seed}": {"folder": str(s.folder), "state": states[s.name]} for s in stages},
            **runs.environment(),
        }
        return report.write_comparison(out, body)


def plan(config: CompareConfig) -> list[str]:
    """The steps of a comparison: each training with its state, then the measurements. Nothing is trained."""
    lines = []
    for stage in stages_of(config):
        exists = (stage.folder / "run.json").exists()
        state = runs.open_run(stage.folder).status() if exists else "to be trained"
        lines.append(f"{stage.name}: {state if stage.config else 'given'}")
    best = [f"{e.name}: best of {', '.join(map(str, e.value))}" for e in entries(config) if e.kind == "best_of"]
    return [*lines, *best, *(f"judge {name}: {spec}" for name, spec in config.judges.items())]


def _ensure_trainings(stages: Sequence[Stage], config: CompareConfig, say: Say) -> dict[str, State]:
    states: dict[str, State] = {}
    for k, stage in enumerate(stages, 1):
        states[stage.name] = ensure(stage, config, lambda line, k=k: say(f"[{k}/{len(stages)}] {line}"))
    n_reused = sum(state == "reused" for state in states.values())
    if n_reused:
        say(f"{n_reused} of {len(stages)} runs reused: finished, with the same settings and inputs")
    return states


def _measure_policies(
    setup: MeasurementSetup, policies: Sequence[Entry], stages: Sequence[Stage], say: Say
) -> tuple[dict[int, Answers], dict[tuple[str, int], Trajectory]]:
    """The start's answers by seed, and the points of every policy and seed."""
    config = setup.config
    by_name = {(s.entry.name, s.seed): s for s in stages}
    starts: dict[int, Answers] = {}
    trajectories: dict[tuple[str, int], Trajectory] = {}
    for seed in config.seeds:
        specs = {n: substituted(spec, folders(config, seed)) for n, spec in config.rewards.items()}
        rewarders = {n: _rewarder(setup, spec) for n, spec in specs.items()}
        keys = {n: content_hash(spec) for n, spec in specs.items()}
        starts[seed] = start_answers(setup, rewarders, keys, seed)
        for entry in policies:
            if entry.kind == "best_of":
                trajectories[entry.name, seed] = _best_of_points(setup, entry, seed, rewarders, keys)
            elif (stage := by_name.get((entry.name, seed))) is not None:
                snaps = snapshots(stage.folder, config.snapshots)
                measurements = measure_snapshots(setup, snaps, rewarders, keys, seed, stage.name)
                before = required_cost(config, entry, seed)
                trajectories[entry.name, seed] = [
                    Point(s.step, answers, cost_at(config, entry, seed, s.step) + before) for s, answers in measurements
                ]
        say(f"seed {seed}: measured on {len(setup.prompts)} prompts, {config.samples} answers each")
    return starts, trajectories


def _best_of_points(
    setup: MeasurementSetup, entry: Entry, seed: int, give: Mapping[str, Rewarder], keys: Mapping[str, str]
) -> list[Point]:
    """Best-of-n for each n. It costs only the training of its reward model, and n draws per answer."""
    config = setup.config
    spec = substituted(entry.settings.get("reward", next(iter(config.rewards.values()))), folders(config, seed))
    known = {substituted(s, folders(config, seed)): give[n] for n, s in config.rewards.items()}
    ranking = known[spec] if spec in known else _rewarder(setup, spec)
    best = best_of_answers(setup, entry.value, ranking, content_hash(spec), give, keys, seed, f"{entry.name}-{seed}")
    return [Point(n, answers, required_cost(config, entry, seed), draws=n) for n, answers in best]


def _rewarder(setup: MeasurementSetup, spec: str) -> Rewarder:
    config = setup.config
    return reward_source(
        spec,
        device=setup.device,
        max_tokens=config.max_tokens,
        tokens_per_forward=config.tokens_per_forward,
        eos_token=config.eos_token,
    )
