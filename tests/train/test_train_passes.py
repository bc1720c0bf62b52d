"""The passes of an update: a loss that couples the batch sees all of them, a penalty is decided by all of them, and
idle ones, with which a rank accompanies the others, change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.objectives import Term
from afzal.tokens.batch import Batch, collate
from afzal.train import update as module
from afzal.train.constraints import Constraint
from afzal.train.evaluate import evaluate
from afzal.train.feed import Update
from afzal.train.method import Method
from afzal.train.update import Outcome, accumulate

TREES = random_trees(9, seed=3)
OWN = [collate(TREES[:3], "shared"), collate(TREES[3:5], "shared")]
IDLE = replace(collate(TREES[5:], "shared"), idle=True)


def policy() -> tuple[Any, Any]:
    """A policy, and a reference from which it has moved away."""
    model = make("llama")
    choose_sharing(model)
    reference = live_reference(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model, reference


def outcome(name: str, batches: list[Batch], **more: Any) -> tuple[Outcome, dict[str, torch.Tensor]]:
    """The outcome of an update and its gradient."""
    model, reference = policy()
    method = replace(Method.of(objectives.get(name), {}, reference), **more)
    made = accumulate(model, method, Update(batches, [], 5))
    return made, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(ours: tuple[Outcome, dict[str, torch.Tensor]], theirs: tuple[Outcome, dict[str, torch.Tensor]]) -> None:
    (one, ours_gradient), (other, theirs_gradient) = ours, theirs
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=0)
    assert one.metrics.keys() == other.metrics.keys()
    for key, (total, count) in one.metrics.items():
        torch.testing.assert_close((total, count), other.metrics[key], rtol=0, atol=0)
    assert dict(one.carried) == dict(other.carried)
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dpo", "beta_dpo", "bco_pair"])
@pytest.mark.parametrize("held", [{"weight": 2.0}, {"dual_lr": 0.5}])
def test_an_idle_batch_changes_no_number_and_is_passed_through_all_the_same(name, held, monkeypatch):
    passed: list[Batch] = []
    real = module.score_batch
    monkeypatch.setattr(module, "score_batch", lambda m, method, b: (passed.append(b), real(m, method, b))[1])
    costs: list[Batch] = []

    def cost(model: Any, pi: Any, ref: Any, yw: Any, yl: Any, batch: Batch) -> torch.Tensor:
        costs.append(batch)
        return -pi.mean()

    given = {"constraints": (Constraint("c", cost, bound=1.0, **held),)}
    without = outcome(name, OWN, **given)
    passes, priced = len(passed), len(costs)
    passed.clear()
    costs.clear()
    same(outcome(name, [OWN[0], IDLE, OWN[1]], **given), without)
    assert len(passed) * 2 == passes * 3  # as often as each of the others
    assert len(costs) * 2 == priced * 3
    assert sum(b is IDLE for b in costs) * 2 == priced


def test_an_idle_batch_has_a_gradient_of_zero_and_not_none():
    """All ranks reduce the same gradients."""
    model, reference = policy()
    method = Method.of(objectives.get("dpo"), {}, reference)
    scored = module._idle(module._Work(model, method, method.start(), [1.0], {}, {}), IDLE)
    gradient = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and float(g.abs().max()) == 0.0 for g in gradient.values())
    assert (scored.policy.n_responses, scored.policy.token_logps.numel(), len(scored.pairs.p)) == (0, 0, 0)
    assert not scored.policy.token_logps.requires_grad


@pytest.mark.parametrize("name", ["dpo", "beta_dpo"])
def test_several_passes_are_one_update(name):
    """A loss that couples the batch is taken on all passes together; it differs from the sum of those of each."""
    (made, gradient), (whole, expected) = outcome(name, OWN), outcome(name, [collate(TREES[:5], "shared")])
    torch.testing.assert_close(made.loss, whole.loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    apart = [outcome(name, [b])[0].loss * len(b.preferences) / 5 for b in OWN]
    assert torch.isclose(sum(apart), whole.loss, rtol=1e-5) == (name == "dpo")  # pyright: ignore[reportArgumentType]


def test_an_idle_batch_is_in_no_held_out_figure():
    model, reference = policy()
    for name in ("dpo", "beta_dpo"):
        method = Method.of(objectives.get(name), {}, reference)
        assert evaluate(model, method, [OWN[0], IDLE, OWN[1]]) == evaluate(model, method, OWN)


def test_a_penalty_is_decided_by_the_costs_of_the_whole_update():
    """One batch is above the bound and one is below; their mean decides for both."""

    def cost(model: Any, pi: Any, ref: Any, yw: Any, yl: Any, batch: Batch) -> torch.Tensor:
        return (0.0 * pi).sum() + pi.mean() * (1.0 if batch is OWN[0] else 3.0)

    model, _ = policy()
    with torch.no_grad():
        first, second = (float(cost(model, score(model, b).logps, None, None, None, b)) for b in OWN)
    value = (first * OWN[0].n_responses + second * OWN[1].n_responses) / (OWN[0].n_responses + OWN[1].n_responses)
    assert second < value < first
    free = outcome("dpo", OWN)[1]
    for bound, acts in ((value + 1e-3 * abs(value), False), (value - 1e-3 * abs(value), True)):
        constraint = Constraint("c", cost, bound=bound, weight=1.0)
        made, gradient = outcome("dpo", OWN, constraints=(constraint,))
        assert float(made.metrics["constraint/c"][0]) == pytest.approx(value, rel=1e-5)
        assert all(torch.equal(gradient[n], free[n]) for n in free) is not acts


def test_the_cost_of_an_idle_batch_does_not_decide_a_penalty():
    def cost(model: Any, pi: Any, ref: Any, yw: Any, yl: Any, batch: Batch) -> torch.Tensor:
        return pi.mean() - pi.mean().detach() + (5.0 if batch is IDLE else 0.5)

    constraints = (Constraint("c", cost, bound=1.0, weight=1.0),)
    made, gradient = outcome("dpo", [OWN[0], IDLE, OWN[1]], constraints=constraints)
    assert float(made.metrics["constraint/c"][0]) == pytest.approx(0.5)
    torch.testing.assert_close(gradient, outcome("dpo", OWN)[1], rtol=0, atol=0)


def test_only_a_sum_of_objectives_shows_the_loss_of_each():
    assert [key for key in outcome("dpo", OWN)[0].metrics if key.startswith("loss")] == ["loss"]
    model, reference = policy()
    both = (Term(objectives.get("dpo"), {"beta": 0.1}), Term(objectives.get("sft"), {}))
    metrics = accumulate(model, Method(both, reference), Update(OWN, [], 5)).metrics
    assert {key for key in metrics if key.startswith("loss")} == {"loss", "loss/dpo", "loss/sft"}
