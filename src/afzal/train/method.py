"""A method as the loop sees it: weighted objectives, a reference, and the state carried from update to update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afzal.model.reference import Reference
from afzal.model.statistics import StatisticRequests
from afzal.model.value import Critic
from afzal.objectives import Objective, Term
from afzal.objectives.statistics import parameters_of
from afzal.train.constraints import Constraint
from afzal.train.precision import Weights
from afzal.train.shard import Sharded

Carried = dict[str, float]
"""Running numbers carried from update to update, as ``owner/name``; they are part of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Method:
    """Objectives bound to their parameters, with everything they need.

    Attributes:
        terms: the loss is the sum over terms of weight * mean loss.
        reference: None if no term needs one.
        learned: raw values of parameters that are learned, by ``objective.parameter``; see :meth:`learned_values`.
        constraints: costs to keep below their bounds.
        critic: the value model trained alongside the policy, if a term needs one.
        temperature: divides the policy's logits before log-probs are taken.
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
        """A method with a single objective; parameters that are not given have their defaults."""
        return cls((Term(objective, {**objective.parameters, **(parameters or {})}),), reference)

    @property
    def name(self) -> str:
        """``dpo``, or ``0.8*dpo + 0.2*bco``."""
        if len(self.terms) == 1:
            return self.terms[0].name
        return " + ".join(f"{term.weight:g}*{term.name}" for term in self.terms)

    @property
    def main(self) -> Term:
        """The term whose rewards the metrics report: the first on pairs or groups, else on responses, else on
        tokens."""
        order = ("pair", "group", "response", "token")
        return min(self.terms, key=lambda term: order.index(term.objective.unit))

    @property
    def couples_batch(self) -> bool:
        return any(term.objective.couples_batch for term in self.terms)

    @property
    def statistics(self) -> StatisticRequests:
        """Every logit statistic that a term needs, with the values of its parameters."""
        statistics = {fn: parameters_of(fn, term.parameters) for term in self.terms for fn in term.objective.statistics}
        return tuple(statistics.items())

    @property
    def shows_pieces(self) -> bool:
        """Whether a term compares log-probs given the full media with those given pieces of them."""
        return any("piece_log_ratio" in term.objective.extras for term in self.terms)

    def at_reference(self) -> float | None:
        """The loss if the policy equals the reference; None unless the parameters alone determine it."""
        values = [term.objective.at_reference(term.parameters) for term in self.terms]
        terms_known = [v * term.weight for v, term in zip(values, self.terms, strict=True) if v is not None]
        return sum(terms_known) if len(terms_known) == len(values) else None

    def start(self) -> Carried:
        """The carried numbers before the first update."""
        carried: Carried = {}
        for term in self.terms:
            if term.objective.initial_state is not None:
                carried |= {f"{term.name}/{k}": v for k, v in term.objective.initial_state(term.parameters).items()}
        return carried | {c.multiplier_key: 0.0 for c in self.constraints if c.dual_lr is not None}

    def keywords(self, term: Term, carried: Carried, pooled: Mapping[str, Tensor]) -> dict[str, Any]:
        """A term function's keyword arguments, in addition to log-probs and opinions."""
        keywords = {**term.parameters, **self.learned_values(term)}
        if term.objective.initial_state is not None:
            keywords["state"] = state_of(term, carried)
        if term.name in pooled:
            keywords["statistic"] = pooled[term.name]
        return keywords

    def learned_values(self, term: Term) -> dict[str, Tensor]:
        """The current values of a term's learned parameters: infimum + softplus(raw)."""
        return {
            name: low + F.softplus(self.learned[key])
            for name, low in term.objective.learnable.items()
            if (key := f"{term.name}.{name}") in self.learned
        }


def state_of(term: Term, carried: Carried) -> dict[str, float]:
    """A term's own part of the carried numbers."""
    prefix = f"{term.name}/"
    return {key.removeprefix(prefix): value for key, value in carried.items() if key.startswith(prefix)}


def raw_parameter(term: Term, name: str) -> nn.Parameter:
    """The raw start value of a learned parameter, such that its current value is the term's."""
    above = torch.tensor(float(term.parameters[name]) - term.objective.learnable[name], dtype=torch.float64)
    return nn.Parameter(torch.log(torch.expm1(above)).float())


def hand_over(weights: Weights | Sharded, method: Method) -> None:
    """Give an update's gradients to the optimiser, in all models that train."""
    weights.hand_over()
    if method.critic is not None:
        method.critic.hand_over()


def publish(weights: Weights | Sharded, method: Method) -> None:
    """Copy the optimiser's weights into the models that train."""
    weights.publish()
    if method.critic is not None:
        method.critic.publish()


def forget_gradient(weights: Weights | Sharded, method: Method) -> None:
    """Drop an update's gradients, in all models that train."""
    weights.forget_gradient()
    if method.critic is not None:
        method.critic.forget_gradient()


def parameters_by_name(weights: Mapping[str, nn.Parameter], method: Method) -> dict[str, nn.Parameter]:
    """All trainable parameters: the model's weights, the method's learned scalars as ``objective/name``, and its value
    model's weights as ``value/name``."""
    values = method.critic.parameters if method.critic is not None else {}
    return (
        dict(weights)
        | {f"objective/{name}": raw for name, raw in method.learned.items()}
        | {f"value/{name}": p for name, p in values.items()}
    )
