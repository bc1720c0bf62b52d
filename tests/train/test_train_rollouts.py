"""Rollouts as a feed: the same numbers however they are laid out, cut, stored or revisited."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers_models import make, random_trees

from afzal.errors import AfzalError
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.value import own_critic, shared_critic
from afzal.objectives import bind
from afzal.tokens.batch import Sharing, collate
from afzal.tokens.tree import Tree
from afzal.train.feed import Layout, Update
from afzal.train.method import Method, parameters_by_name
from afzal.train.optim import trainable
from afzal.train.precision import Weights
from afzal.train.rollouts import Controller, Rollout, Rollouts, as_tensors, from_tensors
from afzal.train.update import accumulate

NAMES = ("old_logp", "ref_logp", "advantage", "old_value", "target")
METHODS = {"ppo": "ppo + 0.1*value", "rloo": "rloo", "grpo": "grpo", "reinforce": "ppo"}


def rollout_trees(n: int = 6, seed: int = 0) -> list[Tree]:
    """Prompts with three answers each, with random but plausible log-probs and values."""
    rng = np.random.default_rng(seed)
    made = []
    for t in random_trees(n, seed=seed, k=3):
        facts = lambda m: {k: rng.normal(-3 if "logp" in k else 0, 1, m).astype(np.float32) for k in NAMES}  # noqa: E731
        branches = tuple(replace(b, numbers=facts(len(b.ids))) for b in t.branches)
        made.append(Tree(t.item_id, t.prompt, branches, labels=(True,) * len(branches)))
    return made


def method_for(name: str, model, critic: str = "own") -> Method:
    kind = {"own": own_critic, "shared": shared_critic}[critic]
    return Method(bind(METHODS[name], {}), critic=_moved(kind(model)) if name == "ppo" else None)


def _moved(critic):
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return critic


def update_of(name: str, *, sharing: Sharing = "shared", budget: int = 10_000, critic: str = "own"):
    """Loss, gradient of everything that trains, and metrics of one update on all trees."""
    model = make("llama")
    if sharing == "shared":
        assert choose_sharing(model)[0] == "shared"
    method = method_for(name, model, critic)
    update = Update(Layout(sharing, budget).batches(rollout_trees()), [], 6)
    loss, metrics, _ = accumulate(model, method, update)
    gradients = {k: p.grad for k, p in parameters_by_name(trainable(model), method).items() if p.grad is not None}
    return float(loss), gradients, {k: float(s) / float(n) for k, (s, n) in metrics.items()}, len(update.batches)


@pytest.mark.parametrize("critic", ["own", "shared"])
@pytest.mark.parametrize("name", METHODS)
def test_packed_padded_and_accumulated_give_one_update(name, critic):
    if critic == "shared" and name != "ppo":
        pytest.skip("only PPO has a value model")
    loss, gradients, metrics, _ = update_of(name, critic=critic)
    ways: list[tuple[Sharing, int]] = [("shared", 60), ("unshared", 10_000), ("unshared", 80)]
    for sharing, budget in ways:
        mean_loss, others, seen, parts = update_of(name, critic=critic, sharing=sharing, budget=budget)
        assert parts > 1 or budget == 10_000
        assert mean_loss == pytest.approx(loss, rel=1e-5)
        assert seen == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        assert others.keys() == gradients.keys()
        for key, gradient in gradients.items():
            gap = float((others[key] - gradient).norm() / gradient.norm().clamp(min=1e-12))
            assert gap < 1e-4, key


def test_numbers_travel_with_their_tokens():
    trees = rollout_trees()
    for sharing in ("shared", "unshared"):
        batch = collate(trees, sharing)
        assert set(batch.numbers) == set(NAMES)
        places = [i for i, r in enumerate(batch.response_of.tolist()) if r == 4]
        assert batch.numbers["advantage"][places].tolist() == trees[1].branches[1].numbers["advantage"].tolist()
        assert len(batch.numbers["target"]) == len(batch.predict_at)


def test_value_models_have_a_loss_and_a_gradient_of_their_own():
    _, gradients, metrics, _ = update_of("ppo")
    own = [k for k in gradients if k.startswith("value/trunk.")]
    assert own
    assert all(gradients[k].abs().max() > 0 for k in own)
    assert not [k for k in own if "lm_head" in k]
    assert {"loss/ppo", "loss/value", "policy/clipfrac", "policy/approxkl", "value/clipfrac"} <= set(metrics)
    _, shared, _, _ = update_of("ppo", critic="shared")
    assert [k for k in shared if k.startswith("value/")] == ["value/head.weight", "value/head.bias"]


def test_a_fresh_value_model_expects_nothing_and_does_not_touch_the_policy():
    model = make("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    critic = own_critic(model)
    batch = collate(rollout_trees(), "unshared")
    assert critic.values(batch).abs().max() == 0
    critic.values(batch).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_value_model_in_bf16_moves_float32_weights_and_follows_them():
    """Like the policy: gradients are summed in float32, the trunk is in bf16, and the head stays in float32."""
    batch = collate(rollout_trees(), "unshared")
    exact = _moved(own_critic(make("llama")))
    exact.values(batch).sum().backward()
    critic = _moved(own_critic(make("llama")))
    critic = replace(critic, weights=Weights(critic.trunk, "bf16"))
    assert {p.dtype for p in critic.trunk.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in critic.parameters.values()} == {torch.float32}
    assert list(critic.parameters) == list(exact.parameters)
    assert {id(p) for p in critic.unsharded} < {id(p) for p in critic.parameters.values()}
    values, expected = critic.values(batch), exact.values(batch)
    assert values.dtype == torch.float32
    assert 0 < float((values - expected).norm() / expected.norm()) < 0.02
    values.sum().backward()
    for name, p in critic.parameters.items():
        slope = exact.parameters[name].grad
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert float((p.grad - slope).norm() / slope.norm()) < 0.05, name
    assert all(p.grad is None for p in critic.trunk.parameters())
    with torch.no_grad():
        for name in critic.parameters:
            critic.parameters[name].mul_(2)
    assert torch.equal(critic.values(batch), 2 * values)  # the head alone
    critic.publish()
    assert not torch.equal(critic.values(batch), 2 * values)
    critic.forget_gradient()
    assert all(p.grad is None for p in critic.parameters.values())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_a_temperature_divides_the_logits_whatever_the_family_does_to_them(family, temperature):
    model = make(family)
    batch = collate(rollout_trees(), "unshared")
    logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)[batch.predict_at]
    expected = (logits.float() / temperature).log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
    torch.testing.assert_close(score(model, batch, temperature).token_logps, expected, atol=2e-5, rtol=1e-5)


def test_a_rollout_survives_a_checkpoint_to_the_bit():
    trees = rollout_trees()
    prompts = [Tree(t.item_id, t.prompt, ()) for t in trees]
    order = [4, 0, 0, 2]
    made = Rollout(7, [trees[i] for i in order], order, 0.125, 3.75, {"kind": "rollout"})
    again = from_tensors(as_tensors(made), prompts)
    assert (again.iteration, again.kl_coef, again.kl, list(again.prompts)) == (7, 0.125, 3.75, order)
    for a, b in zip(made.trees, again.trees, strict=True):
        assert (a.item_id, a.labels) == (b.item_id, b.labels)
        assert np.array_equal(a.prompt, b.prompt)
        for x, y in zip(a.branches, b.branches, strict=True):
            assert np.array_equal(x.ids, y.ids)
            assert y.scored.all()
            assert set(x.numbers) == set(y.numbers)
            assert all(np.array_equal(x.numbers[k], y.numbers[k]) for k in x.numbers)


def feed(written: list[tuple[int, float]], **controller) -> Rollouts:
    trees = rollout_trees()

    def write(iteration: int, coef: float) -> Rollout:
        written.append((iteration, coef))
        return Rollout(iteration, trees, list(range(len(trees))), coef, 12.0, {"iteration": iteration})

    made = Controller(0.1, **controller)
    plan = {"epochs": 2, "minibatches": 3, "prompts_per_iteration": 6, "seed": 0}
    return Rollouts(write, trees, Layout("unshared", 10_000), made, **plan)


def test_a_rollout_is_written_once_and_every_pass_sees_every_answer_once():
    written: list[tuple[int, float]] = []
    rollouts = feed(written)
    updates = [rollouts.update(step) for step in range(12)]
    assert written == [(0, 0.1), (1, 0.1)]
    for first in range(0, 12, 3):
        seen = [i for u in updates[first : first + 3] for i in u.item_ids]
        assert sorted(seen) == sorted(t.item_id for t in rollout_trees())
    orders = [[u.item_ids for u in updates[k : k + 3]] for k in (0, 3, 6)]
    assert all(a != b for a, b in combinations(orders, 2)), "each pass has an order of its own, in every iteration"
    assert [bool(u.record) for u in updates] == [k % 6 == 0 for k in range(12)]
    assert rollouts.updates_per_epoch == 6


def test_the_penalty_follows_the_kl_and_goes_on_from_a_checkpoint():
    """KL 12 against a target of 6: a fifth more per horizon of 18 answers, whichever process counts them."""
    written: list[tuple[int, float]] = []
    rollouts = feed(written, target=6.0, horizon=18)
    for step in (0, 6):
        rollouts.update(step)
    assert [c for _, c in written] == pytest.approx([0.1, 0.12])
    later: list[tuple[int, float]] = []
    again = feed(later, target=6.0, horizon=18)
    again.restore(rollouts.tensors())
    first = again.update(7)
    assert (later, first.record) == ([], {})
    assert first.item_ids == rollouts.update(7).item_ids
    again.update(12)
    assert later == [(2, pytest.approx(0.144))]


def test_an_update_whose_numbers_are_not_finite_stops_by_name():
    from afzal.train.loop import Hooks, Settings, State, fit
    from afzal.train.optim import make_optimizer

    model = make("llama")
    trees = rollout_trees()
    bad = trees[2].branches[1].numbers["advantage"]
    bad[0] = math.nan
    rollouts = feed([])
    rollouts.write = lambda iteration, coef: Rollout(iteration, trees, list(range(6)), coef, 0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = make_optimizer(model.parameters())
    with pytest.raises(AfzalError, match="not finite"):
        fit(
            model,
            method_for("reinforce", model),
            rollouts,
            optimizer,
            Settings(3, 1e-3),
            hooks=Hooks(),
            state=State(),
        )
    torch.testing.assert_close(model.state_dict()["lm_head.weight"], before["lm_head.weight"])
