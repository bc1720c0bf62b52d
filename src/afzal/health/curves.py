"""Shared by the checks: the diagnosis, and queries on the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from afzal.health.facts import writes
from afzal.stats.intervals import half_width, wilson
from afzal.text import is_number, setting

_VIRTUAL = ("prefix", "prompt", "p_tuning")
FEW_ROWS = 20  # held-out rows below which their figures allow no conclusion
NO_MARGIN = 1e-5  # mean reward margin of a policy equal to its reference, up to rounding
Severity = Literal["good", "open", "watch", "bad"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One diagnosis in words.

    ``severity`` is ``open`` if the numbers allow no conclusion. ``code`` is stable and for machines, ``rule`` is the
    exact numeric condition, ``remedy`` a setting to change (empty if nothing is wrong), ``step`` the training step it
    points to, ``evidence`` the numbers behind it, ``check`` the name of the check, and ``change`` the settings, by
    name, that would fix a next run.
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
    change: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curves:
    """The metrics split by kind, with the queries that the checks need."""

    train: list[Mapping[str, Any]]
    held_out: list[Mapping[str, Any]]
    facts: Mapping[str, Any]
    rollouts: list[Mapping[str, Any]] = field(default_factory=list)

    def points(self, kind: Literal["train", "eval"], name: str) -> list[tuple[int, float]]:
        """(step, value) of the finite values, in order."""
        rows = self.train if kind == "train" else self.held_out
        return [(int(r["step"]), r[name]) for r in rows if is_number(r.get(name)) and is_number(r.get("step"))]

    def change(self, name: str) -> tuple[float, float] | None:
        """First and last value of the evaluations, else means of the first and last tenth of the training curve."""
        held_out = [v for _, v in self.points("eval", name)]
        if len(held_out) > 1:
            return held_out[0], held_out[-1]
        train = [v for _, v in self.points("train", name)]
        return (head_mean(train), tail_mean(train)) if len(train) > 1 else None

    def margin(self) -> tuple[float, float] | None:
        """First and last reward margin: as logged, or the chosen (desirable) reward minus the rejected one."""
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

    def accuracy_before(self) -> float | None:
        """The accuracy before training, for scores that do not start at 0; None if all margins did.

        A policy equal to its reference has margins of 0 up to rounding. Without a reference, and with a reward model's
        random head, the start ranks the pairs in some order.
        """
        first = next((r for r in self.held_out if r.get("step") == 0), {})
        share, margin = first.get("rewards/accuracies"), first.get("rewards/margins")
        return share if is_number(share) and is_number(margin) and abs(margin) > NO_MARGIN else None

    def setting(self, name: str) -> Any:
        """Value of a setting, from the objective's parameters or the configuration; None if unknown."""
        objective = self.facts.get("objective")
        params = objective.get("params") if isinstance(objective, Mapping) else None
        places = [place for place in (params, self.facts.get("config")) if isinstance(place, Mapping)]
        return next((place[name] for place in places if place.get(name) is not None), None)

    def named(self, name: str) -> str:
        """A setting with its current value: ``beta (now 0.1)``."""
        value = self.setting(name)
        return f"{name} (now {setting(value)})" if is_number(value) else name

    @property
    def is_reward_model(self) -> bool:
        """Whether the trained model scores answers rather than writing them."""
        return not writes(self.facts)

    @property
    def in_rounds(self) -> bool:
        """Whether these are rounds of ``afzal iterate``, whose settings have other names."""
        config = self.facts.get("config")
        return isinstance(config, Mapping) and "rounds" in config

    @property
    def subject(self) -> str:
        """The trained model, in words."""
        return "reward model" if self.is_reward_model else "policy"

    @property
    def training_loss_is_one_curve(self) -> bool:
        """Whether the training losses of two steps can be compared: not if each is on new answers, nor if their
        reference moves."""
        return not self.rollouts and not self.facts.get("reference_moves")

    def known_start(self) -> float | None:
        """The loss at policy = reference if training started there; None if unknown."""
        objective = self.facts.get("objective")
        value = objective.get("at_reference") if isinstance(objective, Mapping) else None
        return value if is_number(value) and starts_at_reference(self.facts) else None

    def times_lr(self, factor: float) -> dict[str, float]:
        """The settings of a next run with ``factor`` times the learning rate; empty if the rate is unknown."""
        value = self.setting("lr")
        return {"lr": float(f"{value * factor:.0e}")} if is_number(value) and value else {}

    def lower_lr(self) -> str:
        """The remedy of a third of the learning rate, with numbers if the rate is known."""
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
    """95% interval of any metric: the stated bounds, else from its standard error, else Wilson's for an accuracy."""
    value, low, high, error = (record.get(f"{name}{end}") for end in ("", "_low", "_high", "_se"))
    if is_number(low) and is_number(high):
        return low, high
    if is_number(value) and is_number(error):
        return value - half_width(error), value + half_width(error)
    return accuracy_interval(record) if name == "rewards/accuracies" else None


def starts_at_reference(facts: Mapping[str, Any]) -> bool:
    """Whether policy and reference are identical before training, a fact of the run.

    Older runs lack that fact. For them it follows from the reference's name and the kind of adapter, since a new
    adapter with virtual tokens is not the identity.
    """
    stated = facts.get("starts_at_reference")
    if isinstance(stated, bool):
        return stated
    model = facts.get("model")
    kind = model.get("adapter") if isinstance(model, Mapping) else None
    return kind not in _VIRTUAL and not str(facts.get("reference", "")).startswith("the model ")


def noise(values: Sequence[float]) -> float:
    """Standard deviation of a curve around its trend, from the differences of neighbours, in the values' unit.

    It uses the median of their absolute values, so a few jumps do not count: for normal noise that is 0.6745 sqrt 2
    standard deviations.
    """
    steps = [abs(b - a) for a, b in pairwise(values)]
    return median(steps) / (0.67449 * 2**0.5) if steps else 0.0


def head_mean(values: Sequence[float]) -> float:
    """Mean of the first tenth (at least three values)."""
    size = max(3, len(values) // 10)
    return sum(values[:size]) / len(values[:size])


def tail_mean(values: Sequence[float]) -> float:
    """Mean of the last tenth (at least three values)."""
    return head_mean(values[::-1])


def step_number(value: Any) -> int | None:
    """A step as an int."""
    return int(value) if is_number(value) else None
