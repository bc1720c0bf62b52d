"""Weights of pairs: each pair pulls by its own weight, whatever else is in its update, even if it is alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import EVERY, of_each_kind, with_numbers

from afzal import objectives
from afzal.errors import AfzalError
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen, live_reference
from afzal.model.reward import ensemble
from afzal.records import Preference
from afzal.tokens import mismatched, only_branch
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree, tree
from afzal.train.evaluate import batch_counts, evaluate
from afzal.train.feed import Feed, Layout, Update, weight_per_item
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable
from afzal.train.update import accumulate

N = 12
ON_PAIRS = [name for name in EVERY if objectives.get(name).unit == "pair"]
WEIGHTED = [name for name in ON_PAIRS if "weight" in objectives.get(name).uses]
APART = [name for name in WEIGHTED if not objectives.get(name).couples_batch]


@cache
def models() -> tuple[Any, Frozen]:
    """A policy, and a reference from which it has moved away."""
    model, reference = make("llama"), make("llama", seed=1)
    for each in (model, reference):
        choose_sharing(each)
    return model, Frozen(reference)


def weighted(n: int = N) -> list[Tree]:
    """Items of two to four responses, all pairs of an item with the weight 1 / C(K, 2) times one from 0 to 30."""
    made = []
    for i in range(n):
        k = 2 + i % 3
        t = random_trees(n, seed=3, k=k)[i]
        each = (30.0, 0.1, 1.0, 0.0, 2.5)[i % 5] / (k * (k - 1) / 2)
        pairs = tuple(Preference(a, b, 1.0, each) for a in range(k) for b in range(a + 1, k))
        made.append(replace(t, preferences=pairs))
    return made


def gradient() -> torch.Tensor:
    model, _ = models()
    flat = torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None])
    return flat.double().clone()


def update_of(name: str, update: Update, **parameters: Any) -> tuple[Any, torch.Tensor]:
    model, reference = models()
    objective = objectives.get(name)
    method = Method.of(objective, parameters, reference if objective.needs_reference else None)
    model.zero_grad()
    outcome = accumulate(model, method, update)
    return outcome, gradient()


def epoch(name: str, trees: list[Tree], size: int, *, budget: int = 10_000) -> torch.Tensor:
    """The sum of an epoch's gradients, each times its number of items."""
    feed = Feed(with_numbers(name, trees), (), size, 0, Layout("shared", budget))
    updates = [feed.update(step) for step in range(feed.updates_per_epoch)]
    return torch.stack([update_of(name, u)[1] * u.n_trees for u in updates]).sum(0)


@pytest.mark.parametrize("name", of_each_kind(APART))
def test_an_epoch_s_gradient_is_the_same_at_every_batch_size(name):
    """Batch 12 in one pass, batch 1, and batches of 5, 5 and 2 in several passes each."""
    trees = weighted()
    whole = epoch(name, trees, N)
    assert whole.norm() > 0
    for size, budget in ((1, 10_000), (5, 60)):
        gradient_of_epoch = epoch(name, trees, size, budget=budget)
        assert float((gradient_of_epoch - whole).norm() / whole.norm()) < (2e-5 if name == "dpop" else 2e-6), size


@pytest.mark.parametrize("name", ["kto", "sft", "plackett_luce"])
def test_units_without_weights_are_counted_over_the_update(name):
    """Labels, tokens and rankings: an epoch's gradients, each times its number of units, add up to the same."""
    model, reference = models()
    objective = objectives.get(name)
    if objective.unit == "group":
        trees = [replace(t, scores=(2.0, 0.0, 1.0)) for t in random_trees(N, seed=3, k=3)]
    else:
        trees = [replace(only_branch(t, 0), preferences=(), labels=(True,)) for t in random_trees(N, seed=3)]
    method = Method.of(objective, {}, reference if objective.needs_reference else None)
    partners = mismatched(trees, 0) if objective.statistic else ()
    z0 = {"statistic": torch.zeros(())} if objective.statistic else {}
    sums = []
    for size in (N, 5, 1):
        feed = Feed(trees, partners, size, 0, Layout("shared", 10_000))
        total = 0.0
        for step in range(feed.updates_per_epoch):
            update, fixed = feed.update(step), replace(objective, fn=lambda *a, **k: objective.fn(*a, **{**k, **z0}))
            units = sum(int(b.scored.sum()) for b in update.batches) if objective.unit == "token" else update.n_trees
            model.zero_grad()
            accumulate(model, replace(method, terms=(replace(method.terms[0], objective=fixed),)), update)
            total = total + units * gradient()
        sums.append(total)
    for other in sums[1:]:
        assert float((other - sums[0]).norm() / sums[0].norm()) < 2e-6


@pytest.mark.parametrize("weight", [1.0, 0.37])
@pytest.mark.parametrize("name", ["dpo", "dr_dpo", "bradley_terry"])
def test_equal_weights_give_the_weighted_mean_s_gradient(name, weight):
    """For an update that is its own training set: to the bit for weights of 1, else to 1e-7."""
    trees = [replace(t, preferences=(Preference(0, 1, 1.0, weight),)) for t in random_trees(N, seed=3)]
    update = Feed(trees, (), 5, 0, Layout("shared", 60)).update(0)
    ours, theirs = update_of(name, update), update_of(name, replace(update, weight_per_item=None))
    assert float(ours[0].loss) == float(theirs[0].loss)
    if weight == 1.0:
        assert torch.equal(ours[1], theirs[1])
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) < 1e-7


def test_the_gradient_by_hand():
    """Weights 6 and 0.5 and a training set whose items weigh 2 on average: (6 g1 + 0.5 g2) / (2 * 2)."""
    first, second, heavy, light = random_trees(4, seed=3)
    weights = {0: 6.0, 1: 0.5, 2: 1.0, 3: 0.5}
    trees = [
        replace(t, preferences=(Preference(0, 1, 1.0, weights[i]),))
        for i, t in enumerate((first, second, heavy, light))
    ]
    assert weight_per_item(trees) == 2.0
    alone = [update_of("dpo", Update([collate([t], "shared")], [], 1))[1] for t in trees[:2]]
    both = Update([collate([t], "shared") for t in trees[:2]], [], 2, weight_per_item=2.0)
    expected = (6 * alone[0] + 0.5 * alone[1]) / 4
    assert float((update_of("dpo", both)[1] - expected).norm() / expected.norm()) < 1e-6


def test_the_loss_shown_is_the_weighted_mean_over_the_update():
    """So it is ln 2 where policy equals reference, and that of the same pairs held out."""
    trees = weighted()
    update = Feed(trees, (), 5, 0, Layout("shared", 60)).update(0)
    model, reference = models()
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, reference)
    result = accumulate(model, method, update)
    assert float(result.loss) == pytest.approx(evaluate(model, method, update.batches)["loss"], rel=1e-6)
    assert tuple(map(float, result.metrics["loss"])) == (float(result.loss), 1.0)
    same = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
    assert float(accumulate(model, same, update).loss) == pytest.approx(math.log(2), abs=1e-6)


def test_a_sum_of_objectives_shows_the_sum_of_its_weighted_means():
    trees = weighted()
    update = Feed(trees, (), 5, 0, Layout("shared", 60)).update(0)
    model, reference = models()
    terms = objectives.bind("0.25*dpo + 2*ipo", {"beta": 0.5})
    result = accumulate(model, Method(terms, reference), update)
    parts = {name: s / n for name, (s, n) in result.metrics.items() if name.startswith("loss/")}
    assert set(parts) == {"loss/dpo", "loss/ipo"}
    assert float(result.loss) == pytest.approx(float(0.25 * parts["loss/dpo"] + 2 * parts["loss/ipo"]))


def learnt_margin(size: int) -> float:
    """How far the policy moves towards B; three quarters of the pairs, with 3% of the weight, are against it."""
    model = make("llama")
    choose_sharing(model)
    reference = live_reference(model)
    say = lambda name, pair: tree(name, [3, 4, 5], [[6], [7]], pairs=[pair])  # noqa: E731
    trees = [say(f"a{k}", Preference(0, 1, 1.0, 0.03 / 24)) for k in range(24)]
    trees += [say(f"b{k}", Preference(1, 0, 1.0, 0.97 / 8)) for k in range(8)]
    feed = Feed(trees, (), size, 0, Layout("shared", 1000))
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, reference)
    settings = Settings(steps=2 * feed.updates_per_epoch, lr=1e-4)
    fit(model, method, feed, make_optimizer(trainable(model).values()), settings, hooks=Hooks(), state=State())
    batch = feed.update(0).batches[0]
    rho = (Frozen(model).score(batch).logps - reference.score(batch).logps)[:2]
    return float(rho[1] - rho[0])


def test_the_side_with_97_percent_of_the_weight_wins_at_every_batch_size():
    """With weights divided out inside each update, batches of one learnt the other side by two nats."""
    assert learnt_margin(1) > 0.5
    assert learnt_margin(32) > 0.05


# nothing has any weight


def nothing(update: Update) -> Update:
    """The same update with pair weights of 0."""
    batches = []
    for batch in update.batches:
        rows = batch.preferences.clone()
        rows[:, 3] = 0.0
        batches.append(replace(batch, preferences=rows))
    return replace(update, batches=batches)


@pytest.mark.parametrize("name", ON_PAIRS)
def test_an_update_without_any_weight_has_no_gradient(name):
    """It also reports no loss, and leaves all running numbers finite."""
    update = nothing(Feed(with_numbers(name, weighted(6)), (), 6, 0, Layout("shared", 60)).update(0))
    outcome, slope = update_of(name, update)
    assert slope.numel() == sum(p.numel() for p in trainable(models()[0]).values())
    assert slope.abs().max() == 0
    assert float(outcome.loss) == 0
    assert tuple(map(float, outcome.metrics["loss"])) == (0.0, 0.0)
    assert all(math.isfinite(value) for value in outcome.carried.values())


class OnceNothing:
    """A feed whose second update has no weight."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.layout, self.updates_per_epoch = feed, feed.layout, feed.updates_per_epoch

    def update(self, step: int) -> Update:
        return nothing(self.feed.update(step)) if step == 1 else self.feed.update(step)


def test_a_run_takes_a_step_of_gradient_0_and_goes_on():
    """AdamW after g, 0: both moments decay and the weights follow the first, as for any other gradient of 0."""
    model = make("llama")
    choose_sharing(model)
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
    feed = OnceNothing(Feed(weighted(6), (), 2, 0, Layout("shared", 1000)))
    optimizer, records, seen = make_optimizer(trainable(model).values()), [], []
    weight = model.lm_head.weight

    def stepped(step: int) -> None:
        seen.append((weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()))

    hooks = Hooks(log=records.append, stepped=stepped)
    fit(model, method, feed, optimizer, Settings(steps=3, lr=1e-3), hooks=hooks, state=State())
    assert ["loss" in record for record in records] == [True, False, True]
    assert [record["grad_norm"] > 0 for record in records] == [True, False, True]
    (before, first), (after, second), _ = seen
    torch.testing.assert_close(second, 0.9 * first)
    assert int(optimizer.state[weight]["step"]) == 3
    moved = after - before
    assert moved.abs().max() > 0
    assert (moved.sign()[first.abs() > 1e-6] == -first.sign()[first.abs() > 1e-6]).all()


def test_only_data_without_any_weight_are_refused():
    trees = [replace(t, preferences=(Preference(0, 1, 1.0, 0.0),)) for t in random_trees(3)]
    with pytest.raises(AfzalError, match="all pairs have a weight of 0") as caught:
        Feed(trees, (), 2, 0, Layout("shared", 100))
    assert "item-0" in caught.value.where
    one = [*trees, *random_trees(1, seed=5)]
    assert Feed(one, (), 2, 0, Layout("shared", 100)).weight_per_item == 0.25
    broken = [replace(trees[1], preferences=(Preference(0, 1, 1.0, math.inf),)), trees[0]]
    with pytest.raises(AfzalError, match="not a finite number"):
        Feed(broken, (), 2, 0, Layout("shared", 100))
    assert weight_per_item([replace(t, preferences=()) for t in trees]) == 1.0


def test_items_without_pairs_are_no_items_of_pairs():
    """Rankings together with pairs: the mean is over the items that have pairs, and so is the count."""
    bare = [replace(t, preferences=()) for t in random_trees(3)]
    heavy = replace(random_trees(4)[3], preferences=(Preference(0, 1, 1.0, 3.0), Preference(1, 0, 1.0, 2.0)))
    assert weight_per_item([*bare, heavy]) == 5.0
    method = Method.of(objectives.get("dpo"), {}, models()[1])
    assert batch_counts(method, collate([*bare, heavy], "shared"), 5.0) == [5.0]
    assert batch_counts(method, collate([*bare, heavy], "shared")) == [5.0]
    assert batch_counts(method, collate([heavy, *random_trees(1)], "shared"), 0.5) == [1.0]
    assert batch_counts(method, replace(collate([heavy], "shared"), idle=True), 5.0) == [0.0]


def test_the_heads_of_an_ensemble_are_items_of_their_own():
    """A batch counts its items times its heads, whatever items the heads have drawn."""
    trees = random_trees(40)
    feed = Feed(trees, (), 1, 0, Layout("shared", 1000), lambda batch: ensemble(batch, 2, 0))
    method = Method.of(objectives.get("bradley_terry"))
    drawn = set()
    for step in range(feed.updates_per_epoch):
        (batch,) = feed.update(step).batches
        drawn.add(tuple(batch.preferences[:, 3].tolist()))
        assert batch_counts(method, batch, feed.weight_per_item) == [2.0]
    assert (0.0, 0.0) in drawn
    assert len(drawn) > 4
