"""One training of a sweep: run or resumed, measured at every snapshot; divergence is recorded with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from afzal import runs
from afzal.compare.measure import Answers, MeasurementSetup, measure_snapshots, set_up, snapshots, start_answers
from afzal.compare.trainings import RunMismatch, Stage, ensure, refuse_other
from afzal.config import CompareConfig
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.recipes import Stopped
from afzal.rewards.source import Rewarder, reward_source
from afzal.text import is_number
from afzal.train.loop import NotFinite

Say = Callable[[str], None]
State = Literal["to be trained", "stopped", "finished", "diverged"]


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a training failed. A diverged training would diverge again, so it is not retried."""

    why: str
    diverged: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A policy along a training: step, answers, and accuracy on held-out pairs with an interval over prompts (None if
    not evaluated)."""

    step: int
    answers: Answers
    accuracy: tuple[float, float, float] | None


@dataclass(eq=False)
class Evaluator:
    """Measures policies: holds the start model, the prompts and the rewards, opened on first use."""

    config: CompareConfig
    _trajectories: dict[tuple[str, int], list[Point]] = field(default_factory=dict)

    @cached_property
    def setup(self) -> MeasurementSetup:
        """The start model and the prompts."""
        return set_up(self.config)

    @cached_property
    def rewarders(self) -> dict[str, Rewarder]:
        """The rewarder of each reward."""
        c = self.config
        source = partial(
            reward_source,
            device=self.setup.device,
            max_tokens=c.max_tokens,
            tokens_per_forward=c.tokens_per_forward,
            eos_token=c.eos_token,
        )
        return {name: source(spec) for name, spec in c.rewards.items()}

    @cached_property
    def keys(self) -> dict[str, str]:
        """For each reward, the hash of its source."""
        return {name: content_hash(spec) for name, spec in self.config.rewards.items()}

    def start(self, seed: int) -> Answers:
        """The start's answers, drawn now or earlier."""
        return start_answers(self.setup, self.rewarders, self.keys, seed)

    def trajectory(self, stage: Stage) -> list[Point]:
        """Every snapshot of a finished training, measured now or earlier."""
        if (stage.name, stage.seed) not in self._trajectories:
            snaps = snapshots(stage.folder, self.config.snapshots)
            measurements = measure_snapshots(self.setup, snaps, self.rewarders, self.keys, stage.seed, stage.name)
            accuracies = {r["step"]: _accuracy(r) for r in runs.open_run(stage.folder).metrics("eval")}
            self._trajectories[stage.name, stage.seed] = [
                Point(s.step, a, accuracies.get(s.step)) for s, a in measurements
            ]
        return self._trajectories[stage.name, stage.seed]


def _accuracy(record: Mapping[str, Any]) -> tuple[float, float, float] | None:
    value, low, high = (record.get(f"rewards/accuracies{end}") for end in ("", "_low", "_high"))
    return (value, low, high) if is_number(value) and is_number(low) and is_number(high) else None


def train_and_measure(evaluator: Evaluator, stage: Stage, say: Say) -> Failure | None:
    """Run a training and measure all its snapshots; return None, or why it failed.

    Raises:
        MadeOtherwise: its folder holds another training.
        Stopped: a signal ended it; everything is saved.
    """
    config = evaluator.config
    if (earlier := failure_of(config, stage)) is not None:
        refuse_other(stage, config)
        return earlier
    try:
        ensure(stage, config, say)
    except (RunMismatch, Stopped):
        raise
    except AfzalError as error:
        failure = Failure(error.what, isinstance(error, NotFinite))
        if failure.diverged:
            runs.atomic_write(_failure_file(config, stage), json.dumps({"why": failure.why}) + "\n")
        return failure
    evaluator.trajectory(stage)
    return None


def failure_of(config: CompareConfig, stage: Stage) -> Failure | None:
    """The divergence recorded by an earlier command; None once the training's folder is deleted."""
    path = _failure_file(config, stage)
    if not path.exists() or not (stage.folder / "run.json").exists():
        return None
    return Failure(runs.read_json(path)["why"], diverged=True)


def state_of(config: CompareConfig, stage: Stage) -> State:
    """The state of a training, from its folder alone."""
    if failure_of(config, stage) is not None:
        return "diverged"
    if not (stage.folder / "run.json").exists():
        return "to be trained"
    return "finished" if runs.open_run(stage.folder).status() == "finished" else "stopped"


def _failure_file(config: CompareConfig, stage: Stage) -> Path:
    return Path(config.out) / "stages" / f"{stage.name}-failed.json"
