"""An adapter that is kept near its starting point by a prior.

L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483, eq. 3) adds s/2 ||theta - theta_0||^2 to the loss: a normal
prior around the earlier weights. The loss is a mean over n items, so a prior worth a fixed number of labels
has strength s = c / n. With constant s the prior grows with the data, and holds training back if target and source
differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afzal.train.dtensor import norm_of
from afzal.train.feed import Update
from afzal.train.method import Carried, Method
from afzal.train.update import Accumulate, Outcome


@dataclass(frozen=True, slots=True)
class Prior:
    """The weights to stay near, by name, and the strength: the pull is ``strength`` times the distance."""

    weights: Mapping[str, Tensor]
    strength: float

    def accumulate(
        self,
        inner: Accumulate,
        masters: Mapping[str, nn.Parameter],
        carriers: Mapping[str, nn.Parameter],
        model: Any,
        method: Method,
        update: Update,
        carried: Carried | None,
    ) -> Outcome:
        """The update of ``inner`` with the prior's gradient added; ``distance`` is Euclidean, before the step."""
        outcome = inner(model, method, update, carried)
        gaps = []
        with torch.no_grad():
            for name, carrier in carriers.items():
                gap = masters[name].detach().to(carrier.device) - self.weights[name]
                gaps.append(gap)
                carrier.grad = (
                    self.strength * gap if carrier.grad is None else carrier.grad.add_(gap, alpha=self.strength)
                )
        distance = outcome.loss.new_tensor(norm_of(gaps), dtype=torch.float64)
        return outcome._replace(metrics={**outcome.metrics, "distance": (distance, torch.ones_like(distance))})
