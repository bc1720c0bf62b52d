"""A method as the loop sees it: weighted objectives, a reference, and the state carried from update to update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afzal.model.reference import Reference
from afzal.model.statistics import Wanted
from afzal.model.value import Critic
from afzal.objectives import Objective, Term
from afzal.objectives.statistics import parameters_of
from afzal.train.constraints import Constraint
from afzal.train.precision import Weights
from afzal.train.shard import Sharded

Carried = dict[str, float]
"""Running numbers that go from one update to the next, as ``owner/name``; they are part of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Method:
    """Objectives bound to their parameters, and what they need.

    Attributes:
        terms: the loss is the sum over terms of weight * mean loss.
        reference: None where no term needs one.
        learned: raw values of parameters that are learned, by ``objective.parameter``; see :func:`learnt`.
        constraints: costs that are kept below their bounds.
        critic: the value model that learns beside the policy, where a term needs one.
        temperature: what the policy's logits are divided by before they are log-probs.
    """

    terms: tuple[Term, ...]
    reference: Reference | None = None
    learned: Mapping[str, nn.Parameter] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    critic: Critic | None = None
    temperature: float = 1.0

    @classmethod
    def of(
        cls, objective: Objective, parameters: Mapping[str, Any] | None = None, reference: Reference | None = None
    ) -> Method:
        """A method of one objective; parameters that are not given have their defaults."""
        return cls((Term(objective, {**objective.parameters, **(parameters or {})}),), reference)

    @property
    def name(self) -> str:
        """``dpo``, or ``0.8*dpo + 0.2*bco``."""
        if len(self.terms) == 1:
            return self.terms[0].name
        return " + ".join(f"{term.weight:g}*{term.name}" for term in self.terms)

    @property
    def main(self) -> Term:
        """The term whose rewards the metrics show: the first on pairs or groups, else on responses, else on tokens."""
        order = ("pair", "group", "response", "token")
        return min(self.terms, key=lambda term: order.index(term.objective.unit))

    @property
    def couples_batch(self) -> bool:
        return any(term.objective.couples_batch for term in self.terms)

    @property
    def statistics(self) -> Wanted:
        """Every statistic that a term needs from the logits, with the values of its parameters."""
        found = {fn: parameters_of(fn, term.parameters) for term in self.terms for fn in term.objective.statistics}
        return tuple(found.items())

    @property
    def shows_pieces(self) -> bool:
        """Whether a term compares what is said of the whole media with what is said of pieces of them."""
        return any("piece_log_ratio" in term.objective.extras for term in self.terms)

    def at_reference(self) -> float | None:
        """The loss where policy equals reference, when it is known from the parameters alone."""
        values = [term.objective.at_reference(term.parameters) for term in self.terms]
        known = [v * term.weight for v, term in zip(values, self.terms, strict=True) if v is not None]
        return sum(known) if len(known) == len(values) else None

    def start(self) -> Carried:
        """What is carried before the first update."""
        found: Carried = {}
        for term in self.terms:
            if term.objective.initial_state is not None:
                found |= {f"{term.name}/{k}": v for k, v in term.objective.initial_state(term.parameters).items()}
        return found | {c.multiplier_key: 0.0 for c in self.constraints if c.dual_lr is not None}

    def keywords(self, term: Term, carried: Carried, pooled: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a term's function is called with, besides log-probs and opinions."""
        found = {**term.parameters, **self.learnt(term)}
        if term.objective.initial_state is not None:
            found["state"] = state_of(term, carried)
        if term.name in pooled:
            found["statistic"] = pooled[term.name]
        return found

    def learnt(self, term: Term) -> dict[str, Tensor]:
        """The present values of a term's learned parameters: infimum + softplus(raw)."""
        return {
            name: low + F.softplus(self.learned[key])
            for name, low in term.objective.learnable.items()
            if (key := f"{term.name}.{name}") in self.learned
        }


def state_of(term: Term, carried: Carried) -> dict[str, float]:
    """A term's own part of what is carried."""
    prefix = f"{term.name}/"
    return {key.removeprefix(prefix): value for key, value in carried.items() if key.startswith(prefix)}


def raw_parameter(term: Term, name: str) -> nn.Parameter:
    """The raw value that a learned parameter starts from, so that its present value is the term's."""
    above = torch.tensor(float(term.parameters[name]) - term.objective.learnable[name], dtype=torch.float64)
    return nn.Parameter(torch.log(torch.expm1(above)).float())


def publish(weights: Weights | Sharded, method: Method) -> None:
    """Let the models that train compute with what the optimiser has moved."""
    weights.publish()
    if method.critic is not None:
        method.critic.publish()


def forget_gradient(weights: Weights | Sharded, method: Method) -> None:
    """Let go of what there is of an update's gradient, of all models that train."""
    weights.forget_gradient()
    if method.critic is not None:
        method.critic.forget_gradient()


def parameters_by_name(weights: Mapping[str, nn.Parameter], method: Method) -> dict[str, nn.Parameter]:
    """Everything that trains: the model's weights, the method's learned scalars as ``objective/name``, and its value
    model's weights as ``value/name``."""
    values = method.critic.parameters if method.critic is not None else {}
    return (
        dict(weights)
        | {f"objective/{name}": raw for name, raw in method.learned.items()}
        | {f"value/{name}": p for name, p in values.items()}
    )
