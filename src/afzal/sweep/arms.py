"""The arms of a sweep and their settings, kept in a file so that the same command finds them again."""

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
_MAX_REPEATED_DRAWS = 1000  # consecutive draws without a new arm after which the space counts as exhausted

SettingValues = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One training variant: base's settings with ``values`` replacing some of them. ``name`` is used for its
    folders."""

    name: str
    values: Values

    @property
    def label(self) -> str:
        """The arm's settings as one would type them."""
        return ", ".join(f"{key} {value_text(value)}" for key, value in self.values.items()) or BASE


def value_text(value: Any) -> str:
    """A value of a setting as one would type it."""
    return setting(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Plan:
    """Base as given, and the varied axes.

    Attributes:
        base_settings: base's settings, without those that the sweep decides.
        base: base as a separate training.
        axes: in the order of the file.
    """

    base_settings: SettingValues
    base: TrainConfig
    axes: tuple[Axis, ...]


def plan_of(config: SweepConfig) -> Plan:
    """Base and axes, checked against the settings of base's method.

    Raises:
        AfzalError: base cannot be read or is not a training on data, an axis is not one of its settings, or the goal
            needs held-out data that base does not name.
    """
    settings = _base_settings(config)
    method = method_of(settings)
    base = resolve(settings)
    if base.policy is None or base.rollouts is not None:
        why = "it learns from rewards of its own answers" if base.rollouts is not None else "it trains no policy"
        methods = ", ".join(name for name, m in METHODS.items() if m.writes and not m.online)
        raise AfzalError(f"a sweep cannot vary {method}: {why}", where="base", remedy=f"choose one of {methods}")
    if config.maximized == "accuracy" and base.eval_data is None:
        raise AfzalError(
            "accuracy needs held-out pairs that are the same for every seed",
            where="base",
            remedy="eval_data: FILE in base",
        )
    if config.prompts is None and base.eval_data is None:
        raise AfzalError("there are no held-out prompts", remedy="prompts: FILE, or eval_data: FILE in base")
    base_settings = {s.key: s.value for s in settings if s.key not in FIXED or s.key in ("model", "eval_data")}
    return Plan(base_settings, base, tuple(_check_axis(axis, method) for axis in config.axes))


def _base_settings(config: SweepConfig) -> list[Setting]:
    if isinstance(config.base, str):
        return read_file(config.base)
    return [Setting(key, value, "base") for key, value in config.base.items()]


def _check_axis(axis: Axis, method: str) -> Axis:
    """The checked axis, with ``integer`` set if its setting is an integer.

    Raises:
        AfzalError: the method has no such setting, or a range is given for a setting that is not a number.
    """
    if axis.key == "method":
        if axis.scale != "list":
            raise AfzalError("method has no range", where="space", remedy="give a list of methods")
        return axis
    fields = CONFIGS[method].model_fields
    if axis.key not in fields:
        suggested = suggestion(axis.key, fields)
        raise AfzalError(f"{method} has no setting {axis.key!r}{suggested}", where="space", remedy="see docs/cli.md")
    types = members(fields[axis.key].annotation)
    if axis.scale != "list" and not types & {int, float}:
        raise AfzalError(
            f"{axis.key} is not a number and has no range", where="space", remedy="give a list of its values"
        )
    return replace(axis, integer=int in types and float not in types)


def settings_of(plan: Plan, arm: Arm) -> SettingValues:
    """An arm's settings as in a file: base's updated by its own, restricted to those that its method has."""
    merged = {**plan.base_settings, **arm.values}
    fields = CONFIGS[method_of([Setting("method", merged["method"], "space")])].model_fields
    return {k: v for k, v in merged.items() if k in fields or k in arm.values}


def resolved(plan: Plan, arm: Arm, **overrides: Any) -> TrainConfig:
    """An arm's training settings.

    Raises:
        AfzalError: its settings are inconsistent; the error names the arm.
    """
    where = f"arm {arm.name} ({arm.label})"
    return resolve([Setting(k, v, where) for k, v in {**settings_of(plan, arm), **overrides}.items()])


def arms_of(config: SweepConfig, plan: Plan, more: int = 0) -> list[Arm]:
    """All arms of a non-adaptive sweep, base first; no two are the same training.

    Arms of an earlier command come first, unchanged; new ones are saved only by :func:`save_arms`.

    Args:
        more: number of arms to add to those of earlier commands, once all of these are finished.

    Raises:
        AfzalError: the folder holds another sweep, or the space has no more arms.
    """
    earlier = load_arms(config, plan)
    n_arms = wanted_arms(config, earlier, more)
    if n_arms is None:
        return distinct(plan, earlier, grid(plan.axes))
    return list(islice(_endless(config, plan, earlier, n_arms), n_arms + 1))


def wanted_arms(config: SweepConfig, earlier: Sequence[Arm], more: int) -> int | None:
    """The wanted number of arms, not counting base; None for a complete grid."""
    if config.search == "grid":
        if more:
            raise AfzalError(
                "a grid has all its arms; nothing can be added",
                remedy="widen space with another out=, or search: sobol",
            )
        return None
    return max(config.arms, len(earlier) - 1) + more


def _endless(config: SweepConfig, plan: Plan, earlier: Sequence[Arm], n_arms: int) -> Iterator[Arm]:
    points = (sobol_points if config.search == "sobol" else random_points)(plan.axes, config.search_seed)
    limit = size(plan.axes)
    if limit is not None and limit < n_arms:  # random draws would take long to find the last ones
        points = iter(grid(plan.axes))
    return iter(distinct(plan, earlier, points, n_arms + 1))


def distinct(plan: Plan, earlier: Sequence[Arm], points: Iterable[Values], limit: int | None = None) -> list[Arm]:
    """Base, the known arms, and an arm for each point whose training differs from all previous ones.

    Args:
        limit: number of arms to stop at, including base.
    """
    arms = list(earlier) or [Arm(BASE_NAME, {})]
    seen = {_identity(plan, arm) for arm in arms}
    in_vain = 0
    for values in points:
        if (limit is not None and len(arms) >= limit) or in_vain == _MAX_REPEATED_DRAWS:
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


def load_arms(config: SweepConfig, plan: Plan) -> list[Arm]:
    """The arms of earlier commands in this folder, base first; empty for a new folder.

    Raises:
        AfzalError: they belong to another base, space or search.
    """
    path = _file(config)
    if not path.exists():
        return []
    stored, current = runs.read_json(path), _identifying_facts(config, plan)
    changed = [key for key, value in current.items() if stored["about"].get(key) != value]
    if changed:
        raise AfzalError(
            f"{config.out} holds a sweep with another {', '.join(changed)}",
            why="; ".join(f"{key}: {stored['about'].get(key)!r} -> {current[key]!r}" for key in changed),
            remedy="restore that, or choose another out=",
        )
    return [Arm(arm["name"], arm["values"]) for arm in stored["arms"]]


def save_arms(config: SweepConfig, plan: Plan, arms: Sequence[Arm], *, finished: bool) -> None:
    """Save the arms, so that the same command finds them again, and whether all their seeds are done."""
    records = [{"name": a.name, "values": dict(a.values)} for a in arms]
    body = {"about": _identifying_facts(config, plan), "finished": finished, "arms": records}
    runs.atomic_write(_file(config), json.dumps(body, indent=1) + "\n")


def is_finished(config: SweepConfig) -> bool:
    """Whether all seeds of the earlier commands' arms are done."""
    path = _file(config)
    return path.exists() and runs.read_json(path)["finished"]


def _file(config: SweepConfig) -> Path:
    return Path(config.out) / "arms.json"


def _identifying_facts(config: SweepConfig, plan: Plan) -> Mapping[str, Any]:
    axes = [{"key": a.key, a.scale: list(a.values), "points": a.points} for a in plan.axes]
    base = {k: v for k, v in plan.base_settings.items() if v is not None}
    facts = {"base": base, "space": axes, "search": config.search, "search_seed": config.search_seed}
    return json.loads(json.dumps(facts))
