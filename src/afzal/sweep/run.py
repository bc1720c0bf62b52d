"""A sweep: search, choose within the KL budget, confirm on fresh seeds, and write the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from afzal import data, report, runs
from afzal.compare.folder import claimed, study_date
from afzal.compare.inputs import open_inputs
from afzal.compare.trainings import Stage, stages_of, with_snapshots
from afzal.config import CompareConfig, SweepConfig, TrainConfig, advice, dump
from afzal.recipes import Stopped
from afzal.records import prompt_key
from afzal.runs import torchrun
from afzal.sweep.arms import BASE_NAME, Arm, arms_of, is_finished, load_arms, plan_of, resolved, wanted_arms
from afzal.sweep.search import Search, explore, run
from afzal.sweep.selection import Candidate, best, candidates
from afzal.sweep.summary import Confirmation, summary
from afzal.sweep.training import Evaluator, state_of
from afzal.sweep.training_length import comparison_config, end_notes, training_lengths
from afzal.text import duration, plural

Say = Callable[[str], None]
RUN = "run.yaml"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The page of a sweep, and the number of its finished arms."""

    page: Path
    finished: int


def sweep(config: SweepConfig, *, more: int = 0, jobs: int = 1, say: Say = print) -> Outcome:
    """Run the sweep that ``config`` describes.

    Finished work is reused and stopped work is resumed, so the same command resumes a sweep.

    Args:
        more: arms to add to those of earlier commands, once these are finished; until then it resumes them.
        jobs: number of parallel trainings, each in its own process, as far as memory allows.

    Raises:
        AfzalError: a fault of the input; :class:`~afzal.recipes.train.Stopped` when a signal ended it.
    """
    torchrun.require_one_process("afzal sweep")
    with study_date(config.out) as date:
        try:
            return _sweep(config, more, jobs, say, date)
        except Stopped as stop:
            raise Stopped(stop.signal, Path(config.out), stop.step, remedy="the same command resumes") from None


def _sweep(config: SweepConfig, more: int, jobs: int, say: Say, date: str) -> Outcome:
    search = _open_search(config, jobs, say)
    out = Path(config.out)
    with claimed(out, "sweep.yaml", dump(config), date):
        overlap = count_training_prompts(search)
        for name, count in overlap.items():
            if count:
                say(f"note: {count} of {name} are training prompts too; measurements on them are too optimistic")
        explore(search, _arms_to_add(search, more))
        measured = candidates(search.criterion, search.complete_points, search.starts())
        chosen = best(search.criterion, measured)
        confirmed = _confirm(search, chosen)
        body = summary(search, measured, chosen, confirmed)
        body |= {"trained_on": overlap, "settings": config.model_dump(mode="json"), **runs.environment()}
        if chosen is None:
            (out / RUN).unlink(missing_ok=True)
        else:
            runs.atomic_write(out / RUN, _best_run_yaml(search, chosen))
        page = report.write_sweep(out, body)
    return Outcome(page, len(search.complete_points))


def _open_search(config: SweepConfig, jobs: int, say: Say) -> Search:
    """A search with opened and checked inputs.

    Raises:
        AfzalError: an input cannot be read; the error names it.
    """
    plan = plan_of(config)
    base = [Arm(BASE_NAME, {})]
    by_arm = training_lengths(config, plan, base)
    search = Search(
        config, plan, Evaluator(comparison_config(config, plan, base, by_arm, config.seeds)), jobs, say, [], by_arm
    )
    arms = arms_of(config, plan) if config.search != "tpe" else base
    comparison = search.trainings(arms, config.seeds)
    open_inputs(comparison, stages_of(comparison))
    return search


def count_training_prompts(search: Search) -> dict[str, int]:
    """The number of distinct held-out prompts that are in base's training data, by the setting that names them."""
    config, base = search.config, search.plan.base
    read = data.read(base.data, columns=base.columns or None, format=base.data_format, on_error="drop")
    training_prompts = {prompt_key(item) for item in read.items}
    paths = {"prompts": search.evaluator.config.prompts, "confirm_prompts": config.confirm_prompts}
    prompts_of = {
        name: {prompt_key(item) for item in data.read(path).items} for name, path in paths.items() if path is not None
    }
    return {name: len(prompts & training_prompts) for name, prompts in prompts_of.items()}


def _arms_to_add(search: Search, more: int) -> int:
    """The number of arms to add: 0 as long as the last command's arms are not finished."""
    if not more or is_finished(search.config):
        return more
    search.say("the arms of the last command are not finished; they come first, and none are added")
    return 0


def _fresh_seeds(config: SweepConfig) -> list[int]:
    """Seeds not used for the choice."""
    return list(range(max(config.seeds) + 1, max(config.seeds) + 1 + config.confirm))


def _confirm(search: Search, chosen: Candidate | None) -> Confirmation | None:
    """The chosen arm and base, trained and measured with fresh seeds; None without a choice or a confirmation."""
    seeds = _fresh_seeds(search.config)
    if chosen is None or not seeds:
        return None
    names = list(dict.fromkeys([chosen.arm, BASE_NAME]))
    arms = [a for a in search.arms if a.name in names]
    comparison = search.trainings(arms, seeds)
    prompts = search.config.confirm_prompts or search.evaluator.config.prompts
    evaluator = Evaluator(search.evaluator.config.model_copy(update={"prompts": prompts}))
    search.say(f"confirming {chosen.arm} with {plural(len(seeds), 'fresh seed')}")
    outcome = run(search, evaluator, comparison, stages_of(comparison))
    points = {
        name: {s.seed: evaluator.trajectory(s) for s in stages_of(comparison) if s.entry.name == name}
        for name in names
        if all(outcome[s.name] is None for s in stages_of(comparison) if s.entry.name == name)
    }
    failures = {s.entry.name: f.why for s in stages_of(comparison) if (f := outcome[s.name]) is not None}
    return Confirmation(seeds, points, {seed: evaluator.start(seed) for seed in seeds}, failures)


def _best_run_yaml(search: Search, chosen: Candidate) -> str:
    """The chosen arm as the settings of a single training, which gives the same weights as the arm's first seed."""
    config = search.config
    arm = next(a for a in search.arms if a.name == chosen.arm)
    comparison = search.trainings([arm], config.seeds)
    stage = stages_of(comparison)[0]
    settings = with_snapshots(cast(TrainConfig, stage.config), comparison)
    last = search.lengths[arm.name].steps
    lines = [f"# The choice of {config.out}/sweep.yaml: {arm.name}, {arm.label}"]
    if chosen.steps[0] < last:
        checkpoint = f"checkpoints/step-{chosen.steps[0]:08d}"
        lines.append(
            f"# after {chosen.steps[0]} of {last} updates: {stage.folder}/{checkpoint} of the seed {stage.seed}"
        )
    return "\n".join([*lines, dump(settings.model_copy(update={"out": str(Path(config.out) / "best")}))])


def plan(config: SweepConfig, *, more: int = 0) -> list[str]:
    """The plan of a sweep: its arms with their state, then the cost. Nothing is trained."""
    sweep_plan = plan_of(config)
    earlier = load_arms(config, sweep_plan)
    adaptive = config.search == "tpe"
    arms = (earlier or [Arm(BASE_NAME, {})]) if adaptive else arms_of(config, sweep_plan, more)
    by_arm = training_lengths(config, sweep_plan, arms)
    trainings = comparison_config(config, sweep_plan, arms, by_arm, config.seeds)
    stages = stages_of(trainings)
    lines = [
        _line(trainings, arm, by_arm[arm.name].steps, [s for s in stages if s.entry.name == arm.name]) for arm in arms
    ]
    proposed = max(0, (wanted_arms(config, arms, more) or 0) + 1 - len(arms)) if adaptive else 0
    if proposed:
        lines.append(f"and {plural(proposed, 'arm')} that tpe proposes from what it has seen")
    notes = [*end_notes(config, sweep_plan), *(note for arm in arms for note in advice(resolved(sweep_plan, arm)))]
    return [*lines, *_cost(config, trainings, stages, by_arm, proposed), *(f"note: {n}" for n in dict.fromkeys(notes))]


def _line(config: CompareConfig, arm: Arm, steps: int, stages: Sequence[Stage]) -> str:
    states = [state_of(config, s) for s in stages]
    state_counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return f"{arm.name}: {arm.label}; {plural(steps, 'update')}; {state_counts}"


def _cost(
    config: SweepConfig, comparison: CompareConfig, stages: Sequence[Stage], by_arm: Mapping[str, Any], proposed: int
) -> list[str]:
    """Trainings, tokens and, once a training is finished, time."""
    states = {s.name: state_of(comparison, s) for s in stages}
    unfinished = [s for s in stages if states[s.name] in ("to be trained", "stopped")]
    fresh = (proposed * len(config.seeds)) + 2 * config.confirm
    tokens_per_training = max((length.tokens for length in by_arm.values()), default=0)
    tokens = sum(by_arm[s.entry.name].tokens for s in unfinished) + fresh * tokens_per_training
    examples = sorted(length.examples for length in by_arm.values())
    ends = [f"{n:,}" for n in (examples[0], examples[-1])]
    further = [f"{plural(proposed, 'proposed arm')}"] if proposed else []
    further += [f"the choice and base with {plural(config.confirm, 'fresh seed')}"] if config.confirm else []
    lines = [
        f"{plural(len(stages), 'training')}, {len(stages) - len(unfinished)} of them done"
        + (f"; then at most {fresh} more: {' and '.join(further)}" if further else ""),
        f"to be trained: {tokens:,} tokens; every arm sees {' to '.join(dict.fromkeys(ends))} examples",
    ]
    speed = _tokens_per_second(comparison, stages, by_arm)
    if speed is not None:
        lines.append(f"at the speed of the finished trainings: {duration(tokens / speed)} if run one after the other")
    return lines


def _tokens_per_second(comparison: CompareConfig, stages: Sequence[Stage], by_arm: Mapping[str, Any]) -> float | None:
    """The mean speed of the finished trainings, from their run.json; None without any."""
    finished = [s for s in stages if state_of(comparison, s) == "finished"]
    seconds = sum(float(runs.open_run(s.folder).facts().get("seconds", 0.0)) for s in finished)
    return sum(by_arm[s.entry.name].tokens for s in finished) / seconds if seconds else None
