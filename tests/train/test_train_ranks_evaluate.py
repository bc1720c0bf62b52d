"""Held-out figures are means over examples, for any number of rows, rows per pass and ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_models import make, random_trees

from afzal.model.attention import use_tree_attention
from afzal.model.reference import Frozen
from afzal.objectives.registry import get
from afzal.train import ranks
from afzal.train.evaluate import evaluate
from afzal.train.feed import Layout
from afzal.train.method import Method


def _differences(names: list[str], world: int) -> None:
    """In each rank: every number of rows from 1 to 17 against all rows in this process alone."""
    model, reference = make("llama"), make("llama", seed=1)
    for m in (model, reference):
        use_tree_attention(m)
    with ranks.joined(torch.device("cpu")):
        for name in names:
            method = Method.of(get(name), reference=Frozen(reference))
            for n in range(1, 18):
                trees = random_trees(n, seed=n)
                for budget in (40, 120, 4000):
                    layout = Layout("shared", budget, rank=ranks.rank(), world=world)
                    figures = evaluate(model, method, layout.local_batches(trees)[0])
                    assert figures == pytest.approx(_alone(model, method, trees, budget), rel=1e-5, abs=1e-5), (name, n)


def _alone(model: Any, method: Method, trees: list[Any], budget: int) -> dict[str, float]: ...
