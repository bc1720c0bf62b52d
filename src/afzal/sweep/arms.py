"""The arms of a sweep: what each one is trained with, kept in a file so that the same command finds them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from afzal import runs
from afzal.config import (
    CONFIGS,
    FIXED,
    METHODS,
    Axis,
    Setting,
    SweepConfig,
    TrainConfig,
    members,
    method_of,
    read_file,
    resolve,
    suggestion,
)
from afzal.errors import AfzalError
from afzal.sweep.space import Values, grid, random_points, size, sobol_points
from afzal.text import setting

BASE, BASE_NAME = "base", "a000"
_PATIENCE = 1000  # draws in a row that give nothing new; then the space has no more to give

Given = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training: base's settings with ``values`` in place of some of them. ``name`` names its folders."""

    name: str
    values: Values

    @property
    def label(self) -> str:
        """Its settings as one would type them."""
        return ", ".join(f"{key} {shown(value)}" for key, value in self.values.items()) or BASE


def shown(value: Any) -> str:
    """A value of a setting as one would type it."""
    return setting(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Plan:
    """Base as given, and the axes that are varied.

    Attributes:
        given: base's settings, without those that the sweep decides.
        base: base as a training of its own.
        axes: in the order of the file.
    """

    given: Given
    base: TrainConfig
    axes: tuple[Axis, ...]


def plan_of(config: SweepConfig) -> Plan:
    """Base and axes, checked against the settings of base's method.

    Raises:
        AfzalError: base cannot be read or is not a training on data, an axis is not a setting of it, or the goal needs
            held-out data that base does not name.
    """
    settings = _base_settings(config)
    method = method_of(settings)
    base = resolve(settings)
    if base.policy is None or base.rollouts is not None:
        why = "it learns from rewards of its own answers" if base.rollouts is not None else "it trains no policy"
        known = ", ".join(name for name, m in METHODS.items() if m.writes and not m.online)
        raise AfzalError(f"a sweep cannot vary {method}: {why}", where="base", remedy=f"choose one of {known}")
    if config.maximized == "accuracy" and base.eval_data is None:
        raise AfzalError(
            "accuracy needs held-out pairs that are the same for every seed",
            where="base",
            remedy="eval_data: FILE in base",
        )
    if config.prompts is None and base.eval_data is None:
        raise AfzalError("there are no held-out prompts", remedy="prompts: FILE, or eval_data: FILE in base")
    given = {s.key: s.value for s in settings if s.key not in FIXED or s.key in ("model", "eval_data")}
    return Plan(given, base, tuple(_checked(axis, method) for axis in config.axes))


def _base_settings(config: SweepConfig) -> list[Setting]:
    if isinstance(config.base, str):
        return read_file(config.base)
    return [Setting(key, value, "base") for key, value in config.base.items()]


def _checked(axis: Axis, method: str) -> Axis:
    """The axis, whole where its setting is.

    Raises:
        AfzalError: the method has no such setting, or a range was given for one that is not a number.
    """
    if axis.key == "method":
        if axis.scale != "list":
            raise AfzalError("method has no range", where="space", remedy="give a list of methods")
        return axis
    fields = CONFIGS[method].model_fields
    if axis.key not in fields:
        near = suggestion(axis.key, fields)
        raise AfzalError(f"{method} has no setting {axis.key!r}{near}", where="space", remedy="see docs/cli.md")
    kinds = members(fields[axis.key].annotation)
    if axis.scale != "list" and not kinds & {int, float}:
        raise AfzalError(
            f"{axis.key} is not a number and has no range", where="space", remedy="give a list of its values"
        )
    return replace(axis, whole=int in kinds and float not in kinds)


def settings_of(plan: Plan, arm: Arm) -> Given:
    """An arm's settings as they would stand in a file: base's with its own, and those alone that its method has."""
    merged = {**plan.given, **arm.values}
    known = CONFIGS[method_of([Setting("method", merged["method"], "space")])].model_fields
    return {k: v for k, v in merged.items() if k in known or k in arm.values}


def resolved(plan: Plan, arm: Arm, **more: Any) -> TrainConfig:
    """An arm as the training that it is.

    Raises:
        AfzalError: its settings do not go together; names the arm.
    """
    where = f"arm {arm.name} ({arm.label})"
    return resolve([Setting(k, v, where) for k, v in {**settings_of(plan, arm), **more}.items()])


def arms_of(config: SweepConfig, plan: Plan, more: int = 0) -> list[Arm]:
    """Every arm of a sweep that knows them beforehand, base first, no two of which are the same training.

    Those of an earlier command come first, as they were; what is new is only remembered by :func:`keep`.

    Args:
        more: how many arms to add to those of the earlier commands, once all of these have an end.

    Raises:
        AfzalError: the folder holds another sweep, or the space has no more arms.
    """
    known = load(config, plan)
    wanted = wanted_arms(config, known, more)
    if wanted is None:
        return distinct(plan, known, grid(plan.axes))
    return list(islice(_endless(config, plan, known, wanted), wanted + 1))


def wanted_arms(config: SweepConfig, known: Sequence[Arm], more: int) -> int | None:
    """How many arms there are to be besides base; None for all of a grid."""
    if config.search == "grid":
        if more:
            raise AfzalError(
                "a grid has all its arms; nothing can be added",
                remedy="widen space with another out=, or search: sobol",
            )
        return None
    return max(config.arms, len(known) - 1) + more


def _endless(config: SweepConfig, plan: Plan, known: Sequence[Arm], wanted: int) -> Iterator[Arm]:
    points = (sobol_points if config.search == "sobol" else random_points)(plan.axes, config.search_seed)
    limit = size(plan.axes)
    if limit is not None and limit < wanted:  # draws would take long to find the last ones
        points = iter(grid(plan.axes))
    return iter(distinct(plan, known, points, wanted + 1))


def distinct(plan: Plan, known: Sequence[Arm], points: Iterable[Values], most: int | None = None) -> list[Arm]:
    """Base, the known arms, and an arm for each point that is another training than all before it.

    Args:
        most: arms to stop at, base included.
    """
    arms = list(known) or [Arm(BASE_NAME, {})]
    seen = {_identity(plan, arm) for arm in arms}
    in_vain = 0
    for values in points:
        if (most is not None and len(arms) >= most) or in_vain == _PATIENCE:
            break
        arm = Arm(f"a{len(arms):03d}", values)
        identity = _identity(plan, arm)
        in_vain = in_vain + 1 if identity in seen else 0
        if identity not in seen:
            arms.append(arm)
            seen.add(identity)
    return arms


def _identity(plan: Plan, arm: Arm) -> str:
    settings = resolved(plan, arm).model_dump(mode="json")
    return json.dumps({k: v for k, v in settings.items() if k != "out"}, sort_keys=True)


def load(config: SweepConfig, plan: Plan) -> list[Arm]:
    """The arms of the earlier commands in this folder, base first; none in a new one.

    Raises:
        AfzalError: they are those of another base, space or search.
    """
    path = _file(config)
    if not path.exists():
        return []
    before, now = runs.read_json(path), _about(config, plan)
    changed = [key for key, value in now.items() if before["about"].get(key) != value]
    if changed:
        raise AfzalError(
            f"{config.out} holds a sweep with another {', '.join(changed)}",
            why="; ".join(f"{key}: {before['about'].get(key)!r} -> {now[key]!r}" for key in changed),
            remedy="put that back, or choose another out=",
        )
    return [Arm(arm["name"], arm["values"]) for arm in before["arms"]]


def keep(config: SweepConfig, plan: Plan, arms: Sequence[Arm], *, finished: bool) -> None:
    """Remember the arms, so that the same command finds them again, and whether all of them have had their seeds."""
    listed = [{"name": a.name, "values": dict(a.values)} for a in arms]
    body = {"about": _about(config, plan), "finished": finished, "arms": listed}
    runs.atomic_write(_file(config), json.dumps(body, indent=1) + "\n")


def is_finished(config: SweepConfig) -> bool:
    """Whether the arms of the earlier commands have had all their seeds."""
    path = _file(config)
    return path.exists() and runs.read_json(path)["finished"]


def _file(config: SweepConfig) -> Path:
    return Path(config.out) / "arms.json"


def _about(config: SweepConfig, plan: Plan) -> Mapping[str, Any]:
    axes = [{"key": a.key, a.scale: list(a.values), "points": a.points} for a in plan.axes]
    base = {k: v for k, v in plan.given.items() if v is not None}
    about = {"base": base, "space": axes, "search": config.search, "search_seed": config.search_seed}
    return json.loads(json.dumps(about))
