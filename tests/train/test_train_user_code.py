"""User-defined losses and costs: errors in them are attributed to them, with the line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers_objectives import opinions, scored

from afzal.errors import AfzalError
from afzal.objectives import get
from afzal.objectives.registry import Objective
from afzal.recipes.constraints import score_function
from afzal.rewards.functions import call_about
from afzal.train import user_code
from afzal.train.constraints import Constraint, cost_of

POLICY, REFERENCE = scored([-3.0, -5.0, -2.0, -4.0]), scored([-4.0, -4.0, -4.0, -4.0])


def mean(policy: Any, reference: Any, pairs: Any) -> Any:
    h = policy.logps[pairs.yw_idxs] - policy.logps[pairs.yl_idxs]
    return (h**2).mean(), policy.logps.detach()


def broken(policy: Any, reference: Any, pairs: Any) -> Any:
    return policy.nothing


def losses_alone(policy: Any, reference: Any, pairs: Any) -> Any:
    return policy.logps[pairs.yw_idxs]


def out_of_memory(policy: Any, reference: Any, pairs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def losses(fn: Any) -> Any:
    objective = Objective(fn.__name__, fn, "pair", needs_reference=True, at_reference=lambda _: None)
    return user_code.call_objective(objective, POLICY, REFERENCE, opinions(2), {})


def test_a_mean_in_place_of_losses_is_refused() -> None:
    with pytest.raises(AfzalError, match="objective 'mean' must give 2 losses, one for each pair, and gave one number"):
        losses(mean)


def test_losses_without_rewards_are_refused() -> None:
    with pytest.raises(AfzalError, match="objective 'losses_alone' gave a Tensor, not two tensors"):
        losses(losses_alone)


def test_what_fails_in_a_loss_is_said_of_it_with_its_line() -> None:
    with pytest.raises(AfzalError, match="objective 'broken' failed: AttributeError") as told:
        losses(broken)
    assert told.value.where == f"{__file__}:{broken.__code__.co_firstlineno + 1}"


def test_running_out_of_memory_stays_what_it_is() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        losses(out_of_memory)


def test_a_fault_of_afzals_own_losses_stays_a_fault_of_afzal() -> None:
    with pytest.raises(TypeError):
        user_code.call_objective(get("dpo"), POLICY, REFERENCE, opinions(2), {"no_such": 1})
    losses_of_pairs, weights, _ = user_code.call_objective(get("dpo"), POLICY, REFERENCE, opinions(2), {"beta": 0.1})
    assert losses_of_pairs.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-0.2)))] * 2)
    assert weights.tolist() == [1, 1]


def test_what_fails_in_a_constraint_is_said_of_it() -> None:
    def cost(model: Any, *_: Any) -> Any:
        return model.nothing

    with pytest.raises(AfzalError, match="constraint 'mine' failed: AttributeError") as told:
        cost_of(Constraint("mine", cost, weight=1.0), None, POLICY, REFERENCE, opinions(2), None)  # pyright: ignore[reportArgumentType]
    assert told.value.where.startswith(__file__)


def test_what_fails_in_a_score_names_the_answer() -> None:
    from afzal import data

    def cost(prompt: str, answer: str) -> float:
        raise KeyError(answer)

    with pytest.raises(AfzalError, match=r"(?s)prompt 'Why\?', answer 'So\.'.*cost failed: KeyError"):
        call_about(cost, data.column_request(cost), "Why?", "So.", {})
    assert user_code.is_user_defined(cost)
    assert not user_code.is_user_defined(score_function)
