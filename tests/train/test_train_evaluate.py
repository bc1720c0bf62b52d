"""Evaluation by example: any number of rows, cut into batches and shared out in any way, gives the same metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.objectives.metrics import add, correct, means, unmoved
from afzal.records import Preference
from afzal.stats.intervals import wilson
from afzal.tokens import only_branch
from afzal.tokens.batch import Batch, collate
from afzal.tokens.tree import Tree
from afzal.train.evaluate import evaluate, losses_of, score_batch
from afzal.train.method import Method

BETA = 0.1
ROWS, BATCH_SIZES, SHARES = range(1, 18), (1, 3, 4, 8), (1, 2, 3)


@pytest.fixture(scope="module")
def models():
    """A policy, and a reference from which it has moved away."""
    model = make("llama")
    choose_sharing(model)
    reference = live_reference(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model, reference


def dpo(reference) -> Method:
    return Method.of(objectives.get("dpo"), {"beta": BETA}, reference)


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    """17 pairs of skewed length: certain, soft, weighted, and one tie."""
    made = random_trees(17, seed=1)
    opinions = {2: Preference(0, 1, 0.7), 5: Preference(1, 0, 0.5), 9: Preference(1, 0, 1.0, 2.5)}
    return [
        t if i not in opinions else t.__class__(t.item_id, t.prompt, t.branches, (opinions[i],))
        for i, t in enumerate(made)
    ]


@pytest.fixture(scope="module")
def examples(models, trees) -> list[dict[str, float]]:
    """Metrics per pair, from its two log-probs with plain arithmetic; an evaluation must be their mean."""
    model, reference = models
    singles = []
    for t in trees:
        (opinion,) = t.preferences
        batch = collate([t], "shared")
        with torch.no_grad():
            policy, ref = score(model, batch).logps.tolist(), reference.score(batch).logps.tolist()
        rewards = [BETA * (a - b) for a, b in zip(policy, ref, strict=True)]
        margin = rewards[opinion.i] - rewards[opinion.j]
        loss = sum(
            share * math.log1p(math.exp(-u)) for share, u in ((opinion.p, margin), (1 - opinion.p, -margin)) if share
        )
        singles.append(
            {
                "loss": loss,
                "weight": opinion.weight,
                "tie": opinion.p == 0.5,
                "rewards/accuracies": float(margin > 0),
                "rewards/margins": margin,
                "rewards/chosen": rewards[opinion.i],
                "rewards/rejected": rewards[opinion.j],
                "logps/chosen": policy[opinion.i],
                "logps/rejected": policy[opinion.j],
                "lengths/chosen": float(len(t.branches[opinion.i].ids)),
                "lengths/rejected": float(len(t.branches[opinion.j].ids)),
            }
        )
    return singles


def expected(rows: list[dict[str, float]]) -> dict[str, float]:
    """Weighted means: the loss over all rows, everything else over the rows that are no ties."""
    decided = [r for r in rows if not r["tie"]]
    names = [n for n in rows[0] if n not in ("loss", "weight", "tie")]
    loss = sum(r["loss"] * r["weight"] for r in rows) / sum(r["weight"] for r in rows)
    weight = math.fsum(r["weight"] for r in decided)
    return {"loss": loss} | {n: math.fsum(r[n] * r["weight"] for r in decided) / weight for n in names}


def cut(trees: list[Tree], size: int) -> list[Batch]:
    """Batches of ``size`` trees in order, the last one ragged."""
    edges = [*range(0, len(trees), size), len(trees)]
    return [collate(trees[a:b], "shared") for a, b in pairwise(edges)]


def agree(actual: dict[str, float], wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        assert actual[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("size", BATCH_SIZES)
@pytest.mark.parametrize("n", ROWS)
def test_metrics_are_those_of_single_examples_however_they_are_batched(models, trees, examples, n, size):
    """A mean of batch means would be off from 2 batches on, and with a ragged one could even change sign."""
    model, reference = models
    figures = evaluate(model, dpo(reference), cut(trees[:n], size))
    agree(figures, expected(examples[:n]))


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("n", [3, 8, 9, 17])
def test_sums_and_counts_of_several_shares_add_up_to_the_same_metrics(models, trees, examples, n, shares):
    """Rows dealt out unevenly, each share tallied separately, tallies added, as several processes would."""
    model, reference = models
    method, together = dpo(reference), {}
    for k in range(shares):
        for batch in cut(trees[:n][k::shares], 4):
            with torch.no_grad():
                losses = losses_of(method, score_batch(model, method, batch), {}, {})
            add(together, {"loss": (losses.sums[0].double(), losses.counts[0].double()), **losses.metrics})
    agree(means(together), expected(examples[:n]))


def test_the_examples_would_tell_a_mean_of_means(examples):
    """The control: on 9 rows in batches of 4, the wrong rule is off by much more than the tolerance."""
    halves = [expected(examples[a:b])["rewards/margins"] for a, b in ((0, 4), (4, 8), (8, 9))]
    assert abs(sum(halves) / 3 - expected(examples[:9])["rewards/margins"]) > 1e-3


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_the_interval_of_the_accuracy_is_over_prompts(models, trees, size):
    """17 pairs, each three times under one prompt: three times the pairs, and the interval of 17 prompts."""
    model, reference = models
    pairs = [t.__class__(t.item_id, t.prompt, t.branches, (Preference(0, 1),)) for t in trees]
    once, thrice = (evaluate(model, dpo(reference), cut(rows, size)) for rows in (pairs, pairs * 3))
    assert thrice["rewards/accuracies"] == once["rewards/accuracies"]
    right = round(17 * once["rewards/accuracies"])
    assert 0 < right < 17
    low, high = once["rewards/accuracies_low"], once["rewards/accuracies_high"]
    assert (low, high) == pytest.approx(wilson(right, 17))
    assert (thrice["rewards/accuracies_low"], thrice["rewards/accuracies_high"]) == pytest.approx((low, high))
    assert low < wilson(3 * right, 51)[0]
    assert high > wilson(3 * right, 51)[1]


def test_a_tie_in_reward_is_half_right_and_a_tie_in_opinion_does_not_count():
    """Rewards 1, 1, 2: the first pair is a tie in reward, the second wrong, the third says nothing."""
    said = objectives.pairs(
        torch.tensor([0, 1, 2]),
        torch.tensor([1, 2, 0]),
        p=torch.tensor([1.0, 0.8, 0.5]),
        weight=torch.tensor([3.0, 1.0, 9.0]),
    )
    right, weight = correct(torch.tensor([1.0, 1.0, 2.0]), said)
    assert (right.tolist(), weight.tolist()) == ([0.5, 0.0, 1.0], [3.0, 1.0, 0.0])


def test_two_unmoved_responses_are_a_tie_and_one_is_not():
    """Pairs (0, 1), (1, 2) and (3, 2), of which 0 and 1 did not move; 3 and 2 have the same reward by chance."""
    said = objectives.pairs(torch.tensor([0, 1, 3]), torch.tensor([1, 2, 2]))
    still = torch.tensor([True, True, False, False])
    right, _ = correct(torch.tensor([1e-8, 2e-8, -1.0, -1.0]), said, still)
    assert right.tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("start", [-1.0, -1000.0])
def test_rounding_is_relative_to_the_log_prob(start):
    """Float32 has about seven digits."""
    off = torch.tensor([0.0, 3e-7, -3e-7, 3e-6, -3e-6])
    policy, reference = SimpleNamespace(logps=start * (1 + off)), SimpleNamespace(logps=torch.full((5,), start))
    assert unmoved(policy, reference).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("off", "accuracy"), [(2e-7, 0.5), (1e-3, None)])
def test_an_equal_policy_ranks_no_pair_by_the_last_bits_of_its_log_probs(models, trees, off, accuracy):
    """A cached reference rounds differently from the policy that it equals; a real difference does count."""
    model, _ = models

    class Rounded:
        def score(self, batch):
            scored = score(model, batch)
            sign = torch.where(scored.response_of % 2 == 0, 1.0, -1.0)
            return replace(scored, token_logps=scored.token_logps * (1 + off * sign))

    pairs = [t.__class__(t.item_id, t.prompt, t.branches, (Preference(0, 1),)) for t in trees]
    figures = evaluate(model, dpo(Rounded()), cut(pairs, 17))
    assert figures["rewards/margins"] != 0
    assert (figures["rewards/accuracies"] == 0.5) is (accuracy == 0.5)
    ends = figures["rewards/accuracies_low"], figures["rewards/accuracies_high"]
    assert (sum(ends) == pytest.approx(1.0)) is (accuracy == 0.5)


def test_a_reference_that_the_objective_does_not_read_ties_no_pair(models, trees):
    """A policy that equals it still has rewards of its own."""
    model, _ = models
    without, given = (Method.of(objectives.get("simpo"), {}, r) for r in (None, live_reference(model)))
    figures = evaluate(model, without, cut(trees, 17))
    assert figures["rewards/accuracies"] != 0.5
    for name in ("", "_low", "_high"):
        assert (
            evaluate(model, given, cut(trees, 17))[f"rewards/accuracies{name}"] == figures[f"rewards/accuracies{name}"]
        )


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_labelled_responses_are_counted_by_example_too(models, trees, size):
    """KTO's loss and its KL term are pooled over all batches before division."""
    model, reference = models
    rows = [only_branch(t, i % 2) for i, t in enumerate(trees)]
    rows = [t.__class__(t.item_id, t.prompt, t.branches, (), (i % 3 != 0,)) for i, t in enumerate(rows)]
    partners = [t.__class__(f"m{i}", t.prompt, rows[i - 1].branches, ()) for i, t in enumerate(rows)]
    parameters = {"beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.5}
    kto = Method.of(objectives.get("kto"), parameters, reference)
    whole = evaluate(model, kto, cut(rows, 17), cut(partners, 17))
    agree(evaluate(model, kto, cut(rows, size), cut(partners, size)), whole)
    with torch.no_grad():
        ratios = [float((score(model, b).logps - reference.score(b).logps).double()) for b in cut(partners, 1)]
    assert whole["kl_estimate"] == pytest.approx(max(0.0, math.fsum(ratios) / 17), rel=1e-5, abs=1e-5)


def test_the_pull_of_length_is_that_of_margins_and_differences_in_tokens(models, trees):
    """From every pair's own log-probs and token counts, whichever answer is preferred, and in any number of batches."""
    model, reference = models
    top = cross = bottom = 0.0
    for t in trees:
        batch = collate([t], "shared", torch.device("cpu"))
        (q,) = t.preferences
        if q.p == 0.5:
            continue
        with torch.no_grad():
            reward = BETA * (score(model, batch).logps - reference.score(batch).logps).double()
        margin, longer = float(reward[q.i] - reward[q.j]), len(t.branches[q.i].ids) - len(t.branches[q.j].ids)
        top, cross = top + q.weight * margin * longer, cross + q.weight * margin**2
        bottom += q.weight * longer**2
    by_size = [evaluate(model, dpo(reference), cut(trees, size)) for size in (1, 5, 17)]
    name = "rewards/length_correlation"
    for figures in by_size:
        assert figures[name] == pytest.approx(top / math.sqrt(cross * bottom), rel=1e-4)
        assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
    assert abs(by_size[0][name]) > 0.03
