"""A pull to the start: its gradient, and the point to which training with it converges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from afzal.train.prior import Prior
from afzal.train.update import Outcome

CENTRE = torch.tensor([1.0, -2.0])


def quadratic(model: Any, method: Any, update: Any, carried: Any) -> Outcome:
    """The gradient of ||w - centre||^2 / 2."""
    model.grad = (model - CENTRE).detach()
    return Outcome(torch.zeros(()), {}, {})


@pytest.mark.parametrize("strength", [0.25, 1.0, 4.0])
def test_training_comes_to_rest_between_the_start_and_the_optimum(strength: float):
    """argmin ||w - c||^2 / 2 + s ||w - w0||^2 / 2 = (c + s w0) / (1 + s)."""
    start = torch.tensor([5.0, 5.0])
    w = nn.Parameter(start.clone())
    prior = Prior({"w": start}, strength)
    for _ in range(400):
        result = prior.accumulate(quadratic, {"w": w}, {"w": w}, w, None, None, None)
        assert w.grad is not None
        w.data.sub_(0.1 * w.grad)
    assert torch.allclose(w, (CENTRE + strength * start) / (1 + strength), atol=1e-5)
    total, n = result.metrics["distance"]
    assert float(total / n) == pytest.approx(float((w - start).norm()), rel=1e-4)
