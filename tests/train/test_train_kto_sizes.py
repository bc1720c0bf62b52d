"""KTO's KL estimate for any number of rows: check 18. No row keeps its own prompt; a single prompt is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.errors import AfzalError
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen
from afzal.tokens import mismatched, only_branch
from afzal.tokens.batch import collate
from afzal.train.evaluate import pooled_statistics
from afzal.train.feed import Feed, Layout
from afzal.train.method import Method
from afzal.train.update import accumulate


def rows(n: int):
    trees = [only_branch(t, 0) for t in random_trees(n, seed=n)]
    return [t.__class__(t.item_id, t.prompt, t.branches, (), (i % 2 == 0,)) for i, t in enumerate(trees)]


@pytest.mark.parametrize("n", range(2, 34))
def test_no_partner_is_ones_own_and_every_response_is_used_once(n):
    trees = rows(n)
    made = mismatched(trees, seed=n)
    own = {t.item_id: t.branches[0].ids.tolist() for t in trees}
    prompts = {t.item_id: t.prompt.tolist() for t in trees}
    response_of = {tuple(ids): item for item, ids in own.items()}
    for t in made:
        partner = response_of[tuple(t.branches[0].ids.tolist())]
        assert prompts[partner] != t.prompt.tolist()
        assert t.prompt.tolist() == prompts[t.item_id]
    assert len(made) == n


def test_a_single_row_is_refused():
    with pytest.raises(AfzalError, match="two different prompts"):
        mismatched(rows(1), seed=0)


@pytest.mark.parametrize("n", [2, 5, 9, 17, 33])
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_the_kl_estimate_is_the_mean_over_all_rows_whatever_the_batches(n, budget):
    model, other = make("llama"), make("llama", seed=1)
    choose_sharing(model)
    choose_sharing(other)
    trees = rows(n)
    partners = mismatched(trees, seed=0)
    method = Method.of(objectives.get("kto"), {}, Frozen(other))
    outcome = accumulate(model, method, Feed(trees, partners, n, 0, Layout("shared", budget)).update(0))
    with torch.no_grad():
        ratios = [
            float(score(model, b).logps - score(other, b).logps) for b in (collate([t], "shared") for t in partners)
        ]
    expected = max(0.0, sum(ratios) / n)
    assert float(outcome.metrics["kl_estimate"][0]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_kl_estimate_is_summed_in_double_precision():
    """Batches of 1e8, 1 and -1e8 nats have a mean of 1/3; in float32 the 1 is lost."""
    sums = iter((1e8, 1.0, -1e8))
    kto = replace(objectives.get("kto"), statistic=lambda *_: (torch.tensor(next(sums)), torch.tensor(1.0)))
    model, other = make("llama"), make("llama", seed=1)
    choose_sharing(model)
    choose_sharing(other)
    batches = [collate([t], "shared") for t in rows(3)]
    pooled = pooled_statistics(model, Method.of(kto, {}, Frozen(other)), batches)["kto"]
    assert (pooled.item(), pooled.dtype) == (pytest.approx(1 / 3), torch.float32)
