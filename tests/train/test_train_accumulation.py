"""8 x 1 = 4 x 2 = 2 x 4 = 1 x 8: how an update is cut into forward passes changes nothing, for every objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import EVERY, of_each_kind, with_numbers

from afzal import objectives
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.tokens import mismatched, only_branch
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree, tree
from afzal.train.feed import Layout, Update
from afzal.train.method import Method
from afzal.train.optim import trainable
from afzal.train.update import accumulate

# float32 itself: this loss is a difference of two steep ones
LIMIT = {"discopop": 2e-6}


def skewed(unit: str) -> list[Tree]:
    """8 trees, the longest response more than ten times the shortest."""
    short = random_trees(7, seed=4, longest=3)
    rng = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(3, 97, (n,), generator=rng).tolist()  # noqa: E731
    pairs = [*short, tree("long", draw(20), [draw(40), draw(35)], pairs=short[0].preferences)]
    if unit == "pair":
        return pairs
    if unit == "group":
        scores = [(3.0, 1.0), (0.0, 2.0), (1.0, 1.0)]
        return [replace(t, scores=scores[i % 3]) for i, t in enumerate(pairs)]
    rows = [only_branch(t, i % 2) for i, t in enumerate(pairs)]
    return [replace(t, preferences=(), labels=(i % 3 != 0,)) for i, t in enumerate(rows)]


@pytest.fixture(scope="module", params=["shared", "unshared"])
def sharing(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(sharing):
    model = make("llama")
    if sharing == "shared":
        choose_sharing(model)
    reference = live_reference(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model, reference


def update_of(models, name: str, size: int, sharing) -> tuple[float, torch.Tensor]:
    model, reference = models
    objective = objectives.get(name)
    trees = with_numbers(name, skewed(objective.unit))
    cut = lambda ts: [collate(ts[k : k + size], sharing) for k in range(0, len(ts), size)]  # noqa: E731
    partners = cut(mismatched(trees, 0)) if objective.statistic else []
    method = Method.of(objective, {}, reference if objective.needs_reference else None)
    model.zero_grad()
    loss, _, _ = accumulate(model, method, Update(cut(trees), partners, len(trees)))
    gradient = [p.grad.flatten() for p in trainable(model).values() if p.grad is not None]
    return float(loss), torch.cat(gradient).double().clone()


@pytest.mark.parametrize("name", of_each_kind(EVERY))
def test_the_gradient_is_the_same_to_1e_6_however_the_update_is_cut(models, name, sharing):
    lengths = [len(b.ids) for t in skewed(objectives.get(name).unit) for b in t.branches]
    assert max(lengths) >= 10 * min(lengths)
    loss, gradient = update_of(models, name, 8, sharing)
    assert gradient.norm() > 0
    for size in (4, 2, 1):
        other, cut = update_of(models, name, size, sharing)
        assert other == pytest.approx(loss, rel=1e-6)
        assert float((cut - gradient).norm() / gradient.norm()) <= LIMIT.get(name, 1e-6), size


def test_padded_passes_hold_as_many_rows_as_fit_the_budget():
    """Pairs of 3 + 7 = 10 tokens a row, two rows each: three pairs are 60 positions, and 59 hold two."""
    trees = [tree(f"item-{i}", [5] * 3, [[6] * 7, [7] * 7]) for i in range(5)]
    rows = {budget: [len(b.ids) for b in Layout("unshared", budget).batches(trees)] for budget in (60, 59, 20, 1)}
    assert rows == {60: [6, 4], 59: [4, 4, 2], 20: [2] * 5, 1: [2] * 5}
