"""Weighted sums of objectives, such as ``0.8*sigmoid + 0.2*bco + 1.0*nll``, and the values of their parameters.

Each term keeps its own unit and its own global count: total = sum over terms of weight * (sum of losses / count).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from .registry import REGISTRY, Interval, Objective, get

_TERM = re.compile(
    r"\s*(?:(?P<weight>[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*\*\s*)?(?P<name>[A-Za-z_][\w.:]*|[^*]+[.]py:\w+)\s*"
)


@dataclass(frozen=True, slots=True)
class Term:
    """One objective of a sum, with its weight in it and its hyper-parameters (defaults for those not given)."""

    objective: Objective
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The objective's name, under which its metrics are logged."""
        return self.objective.name


def bind(expression: str, arguments: Mapping[str, Any] | None = None) -> tuple[Term, ...]:
    """The terms of an expression with their parameters.

    Args:
        expression: ``name``, ``module:function``, ``file.py:function``, or ``weight*name + weight*name ...``.
        arguments: ``beta`` for every term that has such a parameter, ``bco.beta`` for that term only.

    Raises:
        ValueError: it does not parse, names no objective, names one twice, or an argument fits no term or value.
    """
    weighted = [(weight, get(name)) for weight, name in parse(expression)]
    names = [o.name for _, o in weighted]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"objective {doubled[0]!r} appears twice in {expression!r}: add up its weights")
    values = dict(arguments or {})
    for key in values:
        _check_owner(key, [o for _, o in weighted])
    return tuple(Term(o, _parameters(o, values), weight) for weight, o in weighted)


def parse(expression: str) -> list[tuple[float, str]]:
    """Weights and names of ``0.8*a + b``; a missing weight is 1.

    Raises:
        ValueError: the text is not such a sum, or a weight is not above 0.
    """
    terms = []
    for text in expression.split("+"):
        match = _TERM.fullmatch(text)
        if match is None:
            raise ValueError(f"{expression!r} is not an objective: write name, or 0.8*name + 0.2*name")
        weight = _number(match["weight"]) if match["weight"] else 1.0
        if weight is None or not 0 < weight < math.inf:
            raise ValueError(f"the weight {match['weight']} in {expression!r} must be a number above 0")
        terms.append((float(weight), match["name"]))
    return terms


def _parameters(objective: Objective, arguments: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{objective.name}."
    values = dict(objective.parameters)
    for name in values:
        for key in (name, prefix + name):
            if key in arguments:
                values[name] = _checked(objective, name, arguments[key])
    return values


def _check_owner(key: str, objectives: list[Objective]) -> None:
    """Raise unless the argument is a parameter of one of the objectives."""
    term, dot, name = key.rpartition(".")
    candidates = [o for o in objectives if not dot or o.name == term]
    if dot and not candidates:
        raise ValueError(f"{key}: there is no term {term!r} (only {', '.join(o.name for o in objectives)})")
    if any(name in o.parameters for o in candidates):
        return
    owners = sorted(o.name for o in REGISTRY.values() if name in o.parameters)
    known = sorted({p for o in candidates for p in o.parameters})
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known) or 'no parameters'}"
    only_on = f" (only on {', '.join(owners)})" if owners else ""
    raise ValueError(f"{name} has no effect on {', '.join(o.name for o in candidates)}{only_on}{hint}")


def _checked(objective: Objective, name: str, value: Any) -> Any:
    """The value in the type of the parameter's default, within its limits."""
    limit, default = objective.limit(name), objective.parameters[name]
    if not isinstance(limit, Interval):
        if value not in limit:
            raise ValueError(f"{objective.name}: {name} cannot be {value!r}; choose one of {', '.join(limit)}")
        return value
    number = _number(value)
    if number is None or number not in limit or (isinstance(default, int) and number != int(number)):
        expected = "a finite number" if limit == Interval() else f"a number {limit}"
        raise ValueError(f"{objective.name}: {name} cannot be {value!r}; wanted: {expected}")
    return type(default)(number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
