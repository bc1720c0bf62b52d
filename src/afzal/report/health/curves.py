"""What the checks share: the shape of a finding, and questions to ask of the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from afzal.report.text import is_number, setting
from afzal.stats.intervals import half_width, wilson

Severity = Literal["good", "watch", "bad"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding in words.

    ``code`` is stable and for machines, ``rule`` the exact numeric condition, ``remedy`` a setting to change (empty
    when nothing is wrong), ``step`` the training step it points at, ``evidence`` the numbers it rests on, ``check``
    the name of the check that made it.
    """

    code: str
    severity: Severity
    title: str
    explanation: str
    rule: str
    remedy: str = ""
    step: int | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    check: str = ""


@dataclass(frozen=True, slots=True)
class Curves:
    """The metrics split by kind, with the questions the checks ask of them."""

    train: list[Mapping[str, Any]]
    held_out: list[Mapping[str, Any]]
    facts: Mapping[str, Any]
    rollouts: list[Mapping[str, Any]] = field(default_factory=list)

    def points(self, kind: Literal["train", "eval"], name: str) -> list[tuple[int, float]]:
        """(step, value) of the finite values, in order."""
        rows = self.train if kind == "train" else self.held_out
        return [(int(r["step"]), r[name]) for r in rows if is_number(r.get(name)) and is_number(r.get("step"))]

    def change(self, name: str) -> tuple[float, float] | None:
        """First and last value: of the evaluations, else of tenths of the training curve."""
        held_out = [v for _, v in self.points("eval", name)]
        if len(held_out) > 1:
            return held_out[0], held_out[-1]
        train = [v for _, v in self.points("train", name)]
        return (head_mean(train), tail_mean(train)) if len(train) > 1 else None

    def margin(self) -> tuple[float, float] | None:
        """First and last reward margin: as logged, or the chosen (desirable) reward less the rejected one."""
        logged = self.change("rewards/margins")
        if logged:
            return logged
        chosen, rejected = self.change("rewards/chosen"), self.change("rewards/rejected")
        return (chosen[0] - rejected[0], chosen[1] - rejected[1]) if chosen and rejected else None

    def last_accuracy(self) -> tuple[Mapping[str, Any], tuple[float, float]] | None:
        """The last evaluation that has a reward accuracy, with its 95% interval."""
        last = next((r for r in reversed(self.held_out) if is_number(r.get("rewards/accuracies"))), None)
        bounds = accuracy_interval(last) if last else None
        return (last, bounds) if last and bounds else None

    def setting(self, name: str) -> Any:
        """Value of a setting, from the objective's parameters or the configuration; None when unknown."""
        objective = self.facts.get("objective")
        params = objective.get("params") if isinstance(objective, Mapping) else None
        places = [place for place in (params, self.facts.get("config")) if isinstance(place, Mapping)]
        return next((place[name] for place in places if place.get(name) is not None), None)

    def named(self, name: str) -> str:
        """A setting with its present value: ``beta (now 0.1)``."""
        value = self.setting(name)
        return f"{name} (now {setting(value)})" if is_number(value) else name

    def lower_lr(self) -> str:
        """A remedy: a third of the learning rate, with figures when it is known."""
        value = self.setting("lr")
        return f"lower lr from {setting(value)} to about {setting(float(f'{value / 3:.0e}'))}" if value else "lower lr"


def accuracy_interval(record: Mapping[str, Any]) -> tuple[float, float] | None:
    """The stated 95% interval of an evaluation's reward accuracy, else Wilson's from its ``n``."""
    share, low, high = (record.get(f"rewards/accuracies{end}") for end in ("", "_low", "_high"))
    if is_number(low) and is_number(high):
        return low, high
    n = record.get("n")
    return wilson(share * n, n) if is_number(share) and is_number(n) and n > 0 else None


def interval_of(record: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """95% interval of any metric: stated ends, else by its standard error, else Wilson's for an accuracy."""
    value, low, high, error = (record.get(f"{name}{end}") for end in ("", "_low", "_high", "_se"))
    if is_number(low) and is_number(high):
        return low, high
    if is_number(value) and is_number(error):
        return value - half_width(error), value + half_width(error)
    return accuracy_interval(record) if name == "rewards/accuracies" else None


def head_mean(values: Sequence[float]) -> float:
    """Mean of the first tenth (at least three values)."""
    size = max(3, len(values) // 10)
    return sum(values[:size]) / len(values[:size])


def tail_mean(values: Sequence[float]) -> float:
    """Mean of the last tenth (at least three values)."""
    return head_mean(values[::-1])


def whole(value: Any) -> int | None:
    """A step as an int."""
    return int(value) if is_number(value) else None
