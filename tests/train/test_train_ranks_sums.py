"""Losses, gradients and figures as sums over ranks: every objective, any number of held-out rows. No model is cut here,
so that what is tested is the division of the work alone."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import EVERY, with_numbers
from helpers_ranks import start_group
from helpers_runs import finished
from test_train_accumulation import skewed

from afzal import objectives
from afzal.model.attention import use_tree_attention
from afzal.model.reference import Frozen
from afzal.objectives.metrics import means
from afzal.tokens import mismatched
from afzal.train import ranks
from afzal.train.evaluate import evaluate
from afzal.train.feed import Feed, Layout
from afzal.train.method import Method
from afzal.train.optim import trainable
from afzal.train.update import accumulate

WORLD = 3
# Summed log-probs are float32, and another division of the work lays rows out anew, which moves a sum by a step or two:
# by 3e-5 at the -166 nats of the longest row. Figures from differences of such sums are no more exact than that: the
# mean of 8 log-ratios, and a correlation of margins, which is divided by their small spread.
ROUNDING = {"kl_estimate": 1e-5, "correlation": 1e-5}


class Found(NamedTuple):
    """Results of one update: loss, metrics, carried numbers and the gradient."""

    figures: dict[str, float]
    gradient: torch.Tensor


@cache
def _models() -> tuple[Any, Frozen]:
    model, reference = make("llama"), make("llama", seed=1)
    for each in (model, reference):
        use_tree_attention(each)
    return model, Frozen(reference)


def _update(name: str, layout: Layout) -> Found:
    model, reference = _models()
    objective = objectives.get(name)
    trees = with_numbers(name, skewed(objective.unit))
    if objective.unit == "pair" and "weight" in objective.uses:
        weights = (0.5, 1.0, 0.0, 1.5)
        trees = [
            replace(t, preferences=tuple(replace(q, weight=weights[i % 4]) for q in t.preferences))
            for i, t in enumerate(trees)
        ]
    partners = mismatched(trees, 0) if objective.statistic else []
    method = Method.of(objective, {}, reference if objective.needs_reference else None)
    model.zero_grad()
    loss, metrics, carried = accumulate(model, method, Feed(trees, partners, 8, 0, layout).update(0))
    weights = list(trainable(model).values())
    ranks.add_gradients(weights)
    gradient = torch.cat([p.grad.flatten().double().clone() for p in weights if p.grad is not None])
    return Found({"loss": float(loss), **means(metrics), **{f"next/{k}": v for k, v in carried.items()}}, gradient)


def _held_out(n: int, layout: Layout) -> dict[str, float]:
    model, reference = _models()
    trees = random_trees(n, seed=n)
    figures = {}
    for name in ("dpo", "aot", "sft"):
        objective = objectives.get(name)
        method = Method.of(objective, {}, reference if objective.needs_reference else None)
        figures |= {f"{name}/{k}": v for k, v in evaluate(model, method, layout.local_batches(trees)[0]).items()}
    return figures


def _cut(budget: int) -> Layout:
    return Layout("shared", budget, rank=ranks.rank(), world=ranks.world())


def _assert_equal(actual: dict[str, float], expected: dict[str, float], where: Any) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        limit = next((limit for word, limit in ROUNDING.items() if word in key), 1e-6)
        assert actual[key] == pytest.approx(value, rel=2e-6, abs=limit), (where, key)


def _every_objective(names: list[str], environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    alone = {name: _update(name, _cut(10_000)) for name in names}
    os.environ.update(environment)
    with ranks.joined(torch.device("cpu")):
        assert ranks.world() == WORLD
        for name in names:
            update, expected = _update(name, _cut(90)), alone[name]
            _assert_equal(update.figures, expected.figures, name)
            gap = float((update.gradient - expected.gradient).norm() / expected.gradient.norm())
            assert gap <= 2e-6, (name, gap)


def _every_number_of_rows(numbers: list[int], environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    alone = {n: _held_out(n, _cut(10_000)) for n in numbers}
    os.environ.update(environment)
    with ranks.joined(torch.device("cpu")):
        for n in numbers:
            for budget in (1, 60, 200, 10_000):
                _assert_equal(_held_out(n, _cut(budget)), alone[n], (n, budget))


def _assert_all_agree(target: Any, argument: Any) -> None:
    assert [finished(process) for process in start_group(target, WORLD, argument)] == [0] * WORLD


@pytest.mark.slow
def test_every_objective_gives_the_same_update_on_three_ranks():
    _assert_all_agree(_every_objective, sorted(EVERY))


@pytest.mark.slow
def test_held_out_figures_are_by_example_for_1_to_17_rows():
    _assert_all_agree(_every_number_of_rows, list(range(1, 18)))
