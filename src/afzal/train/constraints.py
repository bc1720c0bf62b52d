"""Constraints in addition to the loss: a cost g(theta) with a gradient, kept below its bound by a penalty or a
multiplier.

Penalty: weight * max(0, g - bound). Lagrangian: multiplier * (g - bound), and after each update
multiplier <- max(0, multiplier + dual_lr (g - bound)), which pushes a cost down until it is within its bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.objectives import Pairs, Scored
from afzal.tokens.batch import Batch
from afzal.train.user_code import attribute_errors

Cost = Callable[[Any, Tensor, Tensor | None, Tensor, Tensor, Batch], Tensor]
"""``(model, pi_logps [B], ref_logps [B], yw_idxs [T], yl_idxs [T], batch) -> scalar`` with a gradient: a mean
over the responses of the batch, or over what the function's attribute ``counts`` counts. An update may have several
batches, whose means are weighted by these counts. Random draws are seeded by ``batch.update``, independent of the
batch's other items."""


def responses(batch: Batch) -> float:
    """The count of a mean over the responses of a batch."""
    return float(batch.n_responses)


@dataclass(frozen=True, slots=True)
class Constraint:
    """One cost and its enforcement: exactly one of ``weight`` (penalty) and ``dual_lr`` (Lagrangian) is given.

    ``counts`` gives the count that a batch's cost is a mean over, and so the batch's share in the update's cost.
    """

    name: str
    cost: Cost
    bound: float = 0.0
    weight: float | None = None
    dual_lr: float | None = None
    counts: Callable[[Batch], float] = responses

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.dual_lr is None):
            raise AfzalError(
                f"constraint {self.name!r} needs a weight (penalty) or a dual_lr (Lagrangian), and only one of them",
                remedy="give one of them and leave out the other",
            )

    @property
    def multiplier_key(self) -> str:
        """The multiplier's key among the carried numbers."""
        return f"constraint/{self.name}/multiplier"

    def slope(self, value: float, carried: Mapping[str, float]) -> float:
        """d(term) / d(cost) at this value of the cost: the multiplier, or the weight if the bound is exceeded."""
        if self.weight is None:
            return carried.get(self.multiplier_key, 0.0)
        return self.weight if value > self.bound else 0.0

    def next_multiplier(self, value: float, carried: Mapping[str, float]) -> dict[str, float]:
        """Dual ascent: the multiplier grows while the bound is exceeded and never falls below 0."""
        if self.dual_lr is None:
            return {}
        multiplier = carried.get(self.multiplier_key, 0.0)
        return {self.multiplier_key: max(0.0, multiplier + self.dual_lr * (value - self.bound))}


def cost_of(
    constraint: Constraint, model: Any, policy: Scored, reference: Scored | None, pairs: Pairs, batch: Batch
) -> Tensor:
    """The cost on one batch, a scalar.

    Raises:
        AfzalError: it fails, is not a scalar, or has no gradient and so cannot be enforced.
    """
    ref_logps = None if reference is None else reference.logps
    with attribute_errors(
        constraint.cost, f"constraint {constraint.name!r}", "it must return a scalar with a gradient"
    ):
        value = constraint.cost(model, policy.logps, ref_logps, pairs.yw_idxs, pairs.yl_idxs, batch)
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise AfzalError(
            f"constraint {constraint.name!r} must give a scalar tensor, not {shape}", remedy="return its mean"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise AfzalError(
            f"constraint {constraint.name!r} has no gradient, so training cannot change it",
            why="its value does not depend on the model's weights in a way that autograd sees",
            remedy="compute it from pi_logps or the model, or wrap a black-box score with score_function(...)",
        )
    return value
