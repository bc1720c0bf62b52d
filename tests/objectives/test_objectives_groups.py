"""Group-robust DPO: by hand, one group is DPO, equal losses keep the weights, and the worst group is protected."""

from __future__ import annotations

import math

import pytest
import torch

from afzal.objectives import Scored, get, pairs
from afzal.objectives.sigmoid import dpo


def scored(values: list[float]) -> Scored:
    return Scored(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)), len(values))


def case(groups: list[int], gaps: list[float]):
    """One pair per group entry, whose policy margin is ``gaps`` and whose reference margin is 0."""
    policy = scored([x for gap in gaps for x in (gap, 0.0)])
    reference = scored([0.0] * (2 * len(gaps)))
    first = torch.arange(0, 2 * len(gaps), 2)
    made = pairs(first, first + 1, task_of=torch.tensor([g for g in groups for _ in (0, 1)]))
    return policy, reference, made


ROBUST = get("group_dpo")


def test_by_hand() -> None:
    policy, reference, made = case([0, 0, 1], [0.0, 1.0, -1.0])
    losses, _ = ROBUST.fn(policy, reference, made, beta=1.0, step=0.1, state={})
    each = [math.log1p(math.exp(-gap)) for gap in (0.0, 1.0, -1.0)]
    assert float(losses.mean()) == pytest.approx((each[0] + each[1]) / 2 / 2 + each[2] / 2)
    state = {"0": 0.0, "1": math.log(3)}
    losses, _ = ROBUST.fn(policy, reference, made, beta=1.0, step=0.1, state=state)
    assert float(losses.mean()) == pytest.approx((each[0] + each[1]) / 2 / 4 + each[2] * 3 / 4)


def test_one_group_is_dpo_whatever_its_weight() -> None:
    policy, reference, made = case([2, 2, 2], [0.3, -1.0, 2.0])
    ours, rewards = ROBUST.fn(policy, reference, made, beta=0.5, step=1.0, state={"2": -3.0})
    theirs, expected = dpo(policy, reference, made, beta=0.5)
    assert torch.allclose(ours, theirs)
    assert torch.equal(rewards, expected)


def test_weights_grow_by_the_loss_and_stay_equal_where_losses_are() -> None:
    grown = ROBUST.next_state({}, *case([0, 1], [0.0, 0.0]), beta=1.0, step=0.5)
    assert grown == {"0": 0.0, "1": 0.0}
    worse = ROBUST.next_state({}, *case([0, 1], [2.0, -2.0]), beta=1.0, step=0.5)
    gap = math.log1p(math.exp(2.0)) - math.log1p(math.exp(-2.0))
    assert worse["1"] == 0.0
    assert worse["0"] == pytest.approx(-0.5 * gap)
    again = ROBUST.next_state(worse, *case([0], [0.0]), beta=1.0, step=0.5)  # an update without group 1
    assert again["1"] - again["0"] == pytest.approx(0.5 * gap - 0.5 * math.log(2))


def test_the_worst_group_fares_no_worse_than_with_dpo_on_a_planted_split() -> None:
    """90 pairs of a group that prefers one way, 10 of one that prefers the other, and a shared margin between them."""
    groups = torch.tensor([0] * 90 + [1] * 10)
    features = torch.zeros(100, 2, dtype=torch.float64)
    features[:, 0] = torch.where(groups == 0, 1.0, -1.0)  # the feature on which the groups disagree
    features[groups == 1, 1] = 0.3  # a feature of the small group alone, which it learns slowly

    def worst(robust: bool) -> float:
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        state: dict[str, float] = {}
        for _ in range(400):
            gaps = features @ theta
            policy = Scored(torch.stack([gaps, torch.zeros(100)], 1).flatten(), torch.arange(200), 200)
            reference = Scored(torch.zeros(200, dtype=torch.float64), torch.arange(200), 200)
            first = torch.arange(0, 200, 2)
            made = pairs(first, first + 1, task_of=groups.repeat_interleave(2))
            if robust:
                losses, _ = ROBUST.fn(policy, reference, made, beta=1.0, step=0.1, state=state)
            else:
                losses, _ = dpo(policy, reference, made, beta=1.0)
            (gradient,) = torch.autograd.grad(losses.mean(), theta)
            if robust:
                state = ROBUST.next_state(state, policy, reference, made, beta=1.0, step=0.1)
            theta = (theta - 0.5 * gradient).detach().requires_grad_()
        each = torch.nn.functional.softplus(-(features @ theta).detach())
        return max(float(each[groups == g].mean()) for g in (0, 1))

    plain, robust = worst(False), worst(True)
    assert robust <= plain
    assert robust < 0.8 * plain
