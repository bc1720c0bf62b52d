"""The optimisers: RMSprop updates tensor by tensor, so that no second copy of its state is ever alive."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from afzal.train.optim import make_optimizer


def _parameters(n: int) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(50, 20, generator=draw)) for _ in range(n)]
    for p in made:
        p.grad = torch.randn(p.shape, generator=draw)
    return made


def test_rmsprop_never_takes_the_roots_of_all_its_state_at_once():
    class Roots(TorchDispatchMode):
        seen: list[int] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "sqrt" in func.name():
                self.seen.append(len(args[0]) if isinstance(args[0], list) else 1)
            return func(*args, **(kwargs or {}))

    with Roots() as roots:
        make_optimizer(_parameters(5), "rmsprop").step()
    assert roots.seen == [1] * 5


def test_rmsprop_takes_the_steps_of_torch_s_own():
    ours, theirs = _parameters(3), _parameters(3)
    mine = make_optimizer(ours, "rmsprop")
    for group in mine.param_groups:
        group["lr"] = 0.1
    other = torch.optim.RMSprop(theirs, lr=0.1, alpha=0.99, eps=1e-8)
    for _ in range(3):
        mine.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_adamw_takes_its_steps_by_hand():
    """Two steps of one weight with gradients 1 and 2, betas 1/2 and 3/4, decay 0.

    First moments 1/2 and 5/4, bias-corrected 1 and (5/4) / (3/4) = 5/3. Second moments 1/4 and 19/16, bias-corrected 1
    and (19/16) / (7/16) = 19/7.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([weight], betas=(0.5, 0.75), eps=0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    expected = 0.0
    for gradient, step in ((1.0, 1.0), (2.0, 5 / 3 / math.sqrt(19 / 7))):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        expected -= step
        assert weight.item() == pytest.approx(expected, rel=1e-6)
