"""Different ways to run the same update give the same update."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import EVERY, of_each_kind, with_numbers

from afzal import objectives
from afzal.model.load import add_lora
from afzal.model.probe import choose_sharing
from afzal.model.recompute import set_recompute
from afzal.model.reference import Frozen, MemoizedReference, cache_key, cached, live_reference
from afzal.records import Preference
from afzal.tokens import mismatched, only_branch
from afzal.tokens.tree import tree
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable
from afzal.train.precision import Weights
from afzal.train.update import accumulate


def labelled(n=12, seed=0):
    trees = [only_branch(t, 0) for t in random_trees(n, seed=seed)]
    return [t.__class__(t.item_id, t.prompt, t.branches, (), (i % 3 != 0,)) for i, t in enumerate(trees)]


def trees_for(name, n=12):
    unit = objectives.get(name).unit
    if unit in ("response", "token"):
        return labelled(n)
    return ranked(n) if unit == "group" else with_numbers(name, random_trees(n))


def ranked(n=12, seed=0):
    """Three or four ranked responses per prompt, sometimes one of them without a score."""
    made = random_trees(n, seed=seed, k=4)
    scores = [(3.0, 1.0, 0.5, None), (0.0, 2.0, 1.0, 5.0), (1.0, 1.0, 0.0, 2.0)]
    return [t.__class__(t.item_id, t.prompt, t.branches, t.preferences, (), scores[i % 3]) for i, t in enumerate(made)]


def set_up(name, *, budget=10_000, sharing="shared", batch_size=8, family="llama", **overrides):
    model = make(family, **overrides)
    if sharing == "shared":
        assert choose_sharing(model)[0] == "shared"
    objective = objectives.get(name)
    reference = live_reference(model) if objective.needs_reference else None
    with torch.no_grad():  # away from the reference, so that gradients differ between pairs
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    trees = trees_for(name)
    partners = mismatched(trees, 0) if objective.statistic else ()
    feed = Feed(trees, partners, batch_size, 0, Layout(sharing, budget))
    return model, Method.of(objective, {}, reference), feed


def update_of(model, method, feed, step=0):
    model.zero_grad()
    loss, metrics, _ = accumulate(model, method, feed.update(step))
    gradient = torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None])
    return float(loss), gradient, metrics


@pytest.mark.parametrize("name", of_each_kind(EVERY))
def test_accumulation_shared_unshared_and_padded_give_one_update(name):
    """8x1 = 1x8, shared = unshared, packed = padded: same loss, gradient and metrics, on rows of skewed length."""
    whole = update_of(*set_up(name))
    steep = 50 if name == "dpop" else 1  # its loss is this many times as steep in the log-probs
    for variant in ({"budget": 1}, {"budget": 90}, {"sharing": "unshared"}, {"sharing": "unshared", "budget": 1}):
        model, method, feed = set_up(name, **variant)
        other = update_of(model, method, feed)
        assert len(feed.update(0).batches) > 1 or "budget" not in variant
        assert other[0] == pytest.approx(whole[0], rel=2e-6 * steep)
        assert (other[1] - whole[1]).norm() / whole[1].norm() < 2e-5
        for key in whole[2]:
            torch.testing.assert_close(other[2][key][0], whole[2][key][0], rtol=1e-4, atol=1e-4)
            assert float(other[2][key][1]) == float(whole[2][key][1])


@pytest.mark.parametrize("sharing", ["shared", "unshared"])
@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_recomputed_activations_change_nothing(name, mode, sharing):
    model, method, feed = set_up(name, sharing=sharing)
    plain = update_of(model, method, feed)
    model, method, feed = set_up(name, sharing=sharing)
    set_recompute(model, mode)
    again = update_of(model, method, feed)
    assert again[0] == plain[0]
    assert torch.equal(again[1], plain[1]), "the same operations in the same order"


def test_cached_reference_equals_live_reference(tmp_path):
    model = make("llama")
    choose_sharing(model)
    trees, layout = random_trees(10), Layout("shared", 200)
    live = live_reference(model)
    key = cache_key(model, sharing="shared", dtype="fp32")
    where = {"key": key, "sharing": "shared", "budget": 64, "device": "cpu"}
    table = cached(live, trees, tmp_path, **where)
    for batch in layout.batches(trees):
        torch.testing.assert_close(table.score(batch).token_logps, live.score(batch).token_logps, atol=1e-5, rtol=0)

    class Deaf:
        name = "must not be asked"

        def score(self, batch):
            raise AssertionError("the cache was not used")

    again = cached(Deaf(), trees, tmp_path, **where)
    assert all((again.table[k] == v).all() for k, v in table.table.items())


def test_reference_cache_key_covers_weights_layout_and_dtype_but_not_adapters():
    model = make("llama")
    key = partial(cache_key, sharing="shared", dtype="fp32")
    base = key(model)
    assert cache_key(model, sharing="unshared", dtype="fp32") != base
    assert cache_key(model, sharing="shared", dtype="bf16") != base
    for seed in (1, 2):  # the reference of a LoRA run is the base: another adapter seed is a hit
        torch.manual_seed(seed)
        adapted = add_lora(copy.deepcopy(model), rank=2, alpha=4)
        assert key(adapted, fresh_adapter=True) == base
        assert key(adapted) != base, "a trained adapter is part of the reference"
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-6
    assert key(model) != base


def test_reference_is_made_of_the_weights_in_memory():
    """The policy is changed after loading; at step 0 the loss is still ln 2."""
    model = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(0.1)
    choose_sharing(model)
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(model))
    feed = Feed(random_trees(6), (), 6, 0, Layout("shared", 500))
    loss, _, _ = accumulate(model, method, feed.update(0))
    assert float(loss) == pytest.approx(0.6931472, abs=1e-6)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_first_loss_is_ln2_for_full_and_lora_live_and_cached(adapter, dtype, tmp_path):
    model = make("llama", attention_dropout=0.1)
    choose_sharing(model)
    model = add_lora(model, rank=4, alpha=8) if adapter else model
    Weights(model, dtype)
    trees, layout = random_trees(8), Layout("shared", 100)
    live = live_reference(model, fresh_adapter=adapter)
    where = {"key": "k", "sharing": "shared", "budget": 100, "device": "cpu"}
    for reference in (live, cached(live, trees, tmp_path, **where)):
        method = Method.of(objectives.get("dpo"), {"beta": 0.1}, reference)
        loss, _, _ = accumulate(model, method, Feed(trees, (), 8, 0, layout).update(0))
        assert float(loss) == pytest.approx(0.6931472, abs=1e-6)


def test_perturbing_the_reference_changes_the_loss():
    model, method, feed = set_up("dpo")
    before = update_of(model, method, feed)[0]
    with torch.no_grad():
        method.reference.model.lm_head.weight.mul_(1.5)
    assert abs(update_of(model, method, feed)[0] - before) > 1e-3


def test_weighted_and_soft_pairs_reach_the_gradient():
    """p, weight: a pair at p = 0.5 pulls to the reference, a pair of weight 2 counts as two."""
    a, b = random_trees(2)
    twice = [a, a, b]
    weighted = [a.__class__(a.item_id, a.prompt, a.branches, (Preference(0, 1, 1.0, 2.0),)), b]
    results = []
    for trees in (twice, weighted):
        model, method, _ = set_up("dpo")
        results.append(update_of(model, method, Feed(trees, (), len(trees), 0, Layout("shared", 1000))))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=1e-4)
    soft = a.__class__(a.item_id, a.prompt, a.branches, (Preference(0, 1, 0.25),))
    flipped = a.__class__(a.item_id, a.prompt, a.branches, (Preference(1, 0, 0.75),))
    model, method, _ = set_up("dpo")
    one, two = (update_of(model, method, Feed([t], (), 1, 0, Layout("shared", 1000))) for t in (soft, flipped))
    torch.testing.assert_close(one[1], two[1], atol=1e-7, rtol=1e-5)


def test_updates_are_a_pure_function_of_the_step():
    feed = Feed(random_trees(10), (), 4, 7, Layout("shared", 100))
    assert feed.updates_per_epoch == 3
    assert [len(feed.members(s)) for s in range(6)] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        seen = [i for s in range(3) for i in feed.members(3 * epoch + s)]
        assert sorted(seen) == list(range(10))
    assert feed.members(0) != feed.members(3), "the epochs must be in different orders"
    assert feed.members(4) == Feed(feed.trees, (), 4, 7, Layout("unshared", 9)).members(4)


def test_kto_on_paired_data_mixes_good_and_bad():
    pairs = random_trees(64)
    rows = [t.__class__(t.item_id, t.prompt, (b,), (), (k == 0,)) for t in pairs for k, b in enumerate(t.branches)]
    feed = Feed(rows, (), 16, 0, Layout("shared", 100))
    shares = [sum(rows[i].labels[0] for i in feed.members(s)) for s in range(feed.updates_per_epoch)]
    assert all(0 < s < 16 for s in shares)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 1.0, 2 / 3, 1 / 3])],
)
def test_learning_rate_schedule(schedule, expected):
    rates = [Settings(5, 1.0, warmup_steps=2, schedule=schedule).lr_at(s) for s in range(5)]
    assert rates == pytest.approx(expected)


def test_cosine_ends_near_zero_and_halves_in_the_middle():
    lr = Settings(100, 2.0, schedule="cosine").lr_at
    assert lr(0) == 2.0
    assert lr(50) == pytest.approx(1.0)
    assert lr(99) < 1e-3


def test_training_on_an_identical_tree_learns_its_preference():
    """Would reveal a sign error anywhere between the label and the weights."""
    model = make("llama")
    choose_sharing(model)
    reference = live_reference(model)
    t = [tree("a", [3, 4, 5], [[6, 7, 8], [9, 10]], pairs=[Preference(1, 0)])]
    feed = Feed(t, (), 1, 0, Layout("shared", 100))
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, reference)
    before = [float(x) for x in Frozen(model).score(feed.update(0).batches[0]).logps]
    fit(
        model,
        method,
        feed,
        make_optimizer(trainable(model).values()),
        Settings(steps=20, lr=1e-3),
        hooks=Hooks(),
        state=State(),
    )
    after = [float(x) for x in Frozen(model).score(feed.update(0).batches[0]).logps]
    assert after[1] - before[1] > after[0] - before[0] + 1.0


def test_remembered_reference_asks_once_per_batch():
    _, method, feed = set_up("dpo")
    asked = []

    class Counting:
        name = "counting"

        def score(self, batch):
            asked.append(batch)
            return method.reference.score(batch)

    remembered = MemoizedReference(Counting())
    first, second = feed.update(0).batches[0], feed.update(1).batches[0]
    for batch in (first, second, first, first):
        torch.testing.assert_close(
            remembered.score(batch).token_logps, method.reference.score(batch).token_logps, rtol=0, atol=0
        )
    assert asked == [first, second]
