"""Facts of a run's method, also for older run folders that do not state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.config import method_in


def writes(facts: Mapping[str, Any]) -> bool:
    """Whether the run trained a model that writes; a reward model does not."""
    method = method_in(facts)
    return method is None or method.writes


def referenced(facts: Mapping[str, Any]) -> bool:
    """Whether the run's rewards are log-ratios to a reference: not those of a reward model, nor of a method without
    one."""
    return writes(facts) and facts.get("reference") != "none"


def unit_of(facts: Mapping[str, Any]) -> str:
    """The unit of a run's objective: ``pair``, ``group``, ``response`` or ``token``."""
    objective, method = facts.get("objective"), method_in(facts)
    stated = objective.get("unit") if isinstance(objective, Mapping) else None
    return str(stated or (method.unit if method else "pair"))


def kl_of(facts: Mapping[str, Any]) -> str:
    """A run's KL in words, with the policy that it is measured to.

    Policies that learn from rewards measure it to their reference. So did every run before ``run.json`` stated whether
    the reference is the start.
    """
    start, method = facts.get("reference_is_start", False), method_in(facts)
    online = method is not None and method.online
    return "KL to the start" if start or ("reference_is_start" in facts and not online) else "KL to the reference"
