"""The settings of a sweep: the search space, and the goal within a KL budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .error_messages import suggestion
from .measurement import MeasuringSettings

Goal = Literal["reward", "win_rate", "accuracy"]
GOALS: tuple[Goal, ...] = ("reward", "win_rate", "accuracy")
Scale = Literal["list", "log", "uniform"]

# Searches that propose each arm from the results of earlier ones; the others know all arms beforehand.
ADAPTIVE = ("tpe",)
# Settings that the sweep decides itself: the same for all arms, or fitted to their batch size.
FIXED: Mapping[str, str] = {
    "out": "each arm has its own folder below the sweep's out",
    "seed": "every arm is trained with each of seeds",
    "model": "KL is measured to the model of base, the same for all arms",
    "max_steps": "every arm sees the same number of examples; see examples",
    "epochs": "every arm sees the same number of examples, and every snapshot on the way is a candidate; see examples",
    "save_every_steps": "every snapshot is a candidate; see snapshots",
    "keep_checkpoints": "every snapshot is a candidate; see snapshots",
    "eval_data": "all arms are measured on the same held-out data",
    "reference_cache": "all arms share one",
}
SPACES: Mapping[str, Mapping[str, Any]] = {
    # the ranges of the DPO guide
    "guide": {"beta": {"uniform": [0.1, 0.5]}, "lr": {"log": [1e-6, 1e-5]}, "batch_size": [32, 64, 128]},
}
"""The axes of each preset; ``space`` may add and replace axes."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting that is varied: over the ``values`` of a list, or between the two ends of a range.

    ``points`` is the number of grid values in a range, ends included; ``integer`` axes have whole numbers only.
    """

    key: str
    scale: Scale
    values: tuple[Any, ...]
    points: int | None = None
    integer: bool = False


class SweepConfig(MeasuringSettings, frozen=True):
    """A search over training settings for the best on held-out prompts within a KL budget."""

    base: str | dict[str, Any] = Field(
        description="The training to vary: its settings, or a YAML file with them, such as a run's run.yaml. Every arm "
        "uses its method, model and data."
    )
    space: dict[str, Any] = Field(
        {},
        description="Setting -> a list of its values, {log: [low, high]} or {uniform: [low, high]}; for a grid with "
        "points: N. method can be an axis too.",
    )
    preset: Literal["guide"] | None = Field(
        None, description="Axes of a known space: guide is beta .1 to .5, lr 1e-6 to 1e-5, batch_size 32 to 128."
    )
    search: Literal["grid", "random", "sobol", "tpe"] = Field(
        "sobol", description="How arms are chosen from the space; tpe needs optuna: pip install 'afzal[sweep]'."
    )
    arms: int = Field(12, ge=1, description="Number of arms, not counting base; a grid determines its own number.")
    search_seed: int = Field(0, ge=0, lt=2**31, description="Seed of random, sobol and tpe.")
    goal: dict[str, Any] = Field(
        description="{maximize: GOAL, within: {kl: NATS}}: GOAL is reward (the first of rewards), win_rate (against "
        "the start, by that reward) or accuracy (of held-out pairs); NATS is the KL budget per answer, measured to the "
        "start."
    )
    rewards: dict[str, str] = Field(
        {},
        description="Name -> source: module:function, file.py:function, or a reward model's folder; the goal uses the "
        "first.",
    )
    prompts: str | None = Field(
        None, description="Held-out prompts to answer, in any format of training data; default: base's eval_data."
    )
    examples: int | None = Field(
        None, ge=1, description="Training examples that every arm sees; default: as many as base sees."
    )
    confirm: int = Field(
        2, ge=0, description="Number of fresh seeds on which the chosen arm and base are trained and measured again."
    )
    confirm_prompts: str | None = Field(
        None, description="Prompts for the confirmation, ideally not used in the choice; default: prompts."
    )
    prune: Literal["median"] | None = Field(
        None,
        description="median: an arm that is below the median of earlier arms after its first seeds gets no further "
        "seeds; needs optuna.",
    )
    out: str = Field("sweep", description="Folder for the runs, the measurements and the report.")

    @property
    def maximized(self) -> Goal:
        """The quantity to maximise."""
        return self.goal["maximize"]

    @property
    def kl_budget(self) -> float:
        """Largest KL of a candidate to the start, in nats per answer."""
        return self.goal["within"]["kl"]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The varied settings: the preset's axes, then others."""
        preset = SPACES[self.preset] if self.preset is not None else {}
        return tuple(_axis(key, values) for key, values in {**preset, **self.space}.items())

    @field_validator("base")
    @classmethod
    def _base(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k).replace("-", "_"): v for k, v in value.items()}
        return value

    @field_validator("space")
    @classmethod
    def _space(cls, value: dict[str, Any]) -> dict[str, Any]:
        space = {str(k).replace("-", "_"): v for k, v in value.items()}
        for key, values in space.items():
            if key in FIXED:
                raise ValueError(f"{key} cannot be varied: {FIXED[key]}")
            _axis(key, values)
        return space

    @field_validator("goal")
    @classmethod
    def _goal(cls, value: dict[str, Any]) -> dict[str, Any]:
        name, budget = value.get("maximize"), value.get("within")
        if "minimize" in value or _is_loss(name):
            raise ValueError(
                "a loss is not a goal: a larger beta or lr changes its scale, and the training loss falls however good "
                f"the answers are; maximize {', '.join(GOALS)} on held-out prompts"
            )
        if name not in GOALS:
            hint = suggestion(str(name), GOALS)
            raise ValueError(f"maximize one of {', '.join(GOALS)}, not {name!r}{hint}")
        if not isinstance(budget, dict) or set(budget) != {"kl"} or not _is_positive(budget["kl"]):
            raise ValueError(
                "add the budget as within: {kl: NATS}, more than 0: without one, the arm that moved farthest has the "
                "best reward"
            )
        if unknown := value.keys() - {"maximize", "within"}:
            raise ValueError(f"{min(unknown)!r} is unknown; write it as {{maximize: reward, within: {{kl: 12}}}}")
        return {"maximize": name, "within": {"kl": float(budget["kl"])}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.axes:
            raise ValueError(
                "space is empty: name a setting with its values, such as beta: [0.05, 0.1, 0.2], or a preset"
            )
        if self.maximized != "accuracy" and not self.rewards:
            raise ValueError(f"the goal {self.maximized} needs a reward, as rewards: {{name: file.py:function}}")
        for axis in self.axes:
            if self.search == "grid" and axis.scale != "list" and axis.points is None:
                raise ValueError(f"a grid needs a list for {axis.key}, or points: N next to {axis.scale}")
            if self.search != "grid" and axis.points is not None:
                raise ValueError(f"points of {axis.key} has no effect: search is {self.search}, not grid")
        if self.search == "grid":
            self._refuse(("arms", "search_seed"), "a grid has as many arms as its axes have points")
        if self.prune is not None and len(self.seeds) < 2:
            raise ValueError("prune has no effect: arms are pruned between seeds, and there is only one")
        if self.confirm == 0:
            self._refuse(("confirm_prompts",), "confirm is 0")
        return self


def _is_loss(name: Any) -> bool:
    return isinstance(name, str) and any(word in name.lower() for word in ("loss", "nll", "perplexity"))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _axis(key: str, values: Any) -> Axis:
    """Read one axis.

    Raises:
        ValueError: it is neither a list of different values nor a range.
    """
    if isinstance(values, list):
        if not values or any(values.count(v) > 1 for v in values):
            raise ValueError(f"{key} needs at least one value, and each only once")
        return Axis(key, "list", tuple(values))
    usage = f"write {key} as a list of values, {{log: [low, high]}} or {{uniform: [low, high]}}"
    if not isinstance(values, dict):
        raise ValueError(usage)
    scales: list[Scale] = [s for s in ("log", "uniform") if s in values]
    points = values.get("points")
    if len(scales) != 1 or values.keys() - {scales[0], "points"}:
        raise ValueError(usage)
    ends = values[scales[0]]
    is_pair = isinstance(ends, list) and len(ends) == 2 and all(_is_number(v) for v in ends)
    if not is_pair or not ends[0] < ends[1] or (scales[0] == "log" and ends[0] <= 0):
        raise ValueError(
            f"{key}: {scales[0]} takes two numbers, the lower one first" + (", above 0" * (scales[0] == "log"))
        )
    if points is not None and (not isinstance(points, int) or isinstance(points, bool) or points < 2):
        raise ValueError(f"{key}: points must be a whole number of at least 2")
    return Axis(key, scales[0], tuple(ends), points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
