"""The loop's own numbers by hand: optimiser steps, clipping, schedules, the best step, carried numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen, live_reference
from afzal.objectives import Pairs, Scored, Term
from afzal.records import Preference
from afzal.tokens import only_branch
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree
from afzal.train.constraints import Constraint
from afzal.train.evaluate import evaluate, host_pairs
from afzal.train.feed import Feed, Layout, Update
from afzal.train.loop import Hooks, Settings, State, fit, warmup_steps
from afzal.train.method import Method, parameters_by_name, raw_parameter, state_of
from afzal.train.optim import make_optimizer, trainable
from afzal.train.rollouts import Controller, Rollout, Rollouts
from afzal.train.update import accumulate

# optimiser and schedule


def parameters(n: int = 2) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(3, 4, generator=draw)) for _ in range(n)]
    for p in made:
        p.grad = torch.randn(p.shape, generator=draw)
    return made


def test_adamw_takes_the_steps_of_its_paper():
    """m = (1 - b1) g, v = (1 - b2) g^2, both corrected: the first step is lr (g / (|g| + eps)) plus lr wd w."""
    (p,) = parameters(1)
    before, g = p.detach().clone(), p.grad.clone()
    optimizer = make_optimizer([p], weight_decay=0.5, betas=(0.8, 0.9), eps=1e-2)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * (1 - 0.1 * 0.5) - 0.1 * g / (g.abs() + 1e-2))
    first = p.detach().clone()
    optimizer.step()
    m, v = (0.8 * 0.2 + 0.2) * g / (1 - 0.8**2), (0.9 * 0.1 + 0.1) * g**2 / (1 - 0.9**2)
    torch.testing.assert_close(p.detach(), first * 0.95 - 0.1 * m / (v.sqrt() + 1e-2))


def test_rmsprop_takes_its_decay_and_eps():
    (p,) = parameters(1)
    before, g = p.detach().clone(), p.grad.clone()
    optimizer = make_optimizer([p], "rmsprop", weight_decay=0.5, eps=1e-2)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    pulled = g + 0.5 * before
    torch.testing.assert_close(p.detach(), before - 0.1 * pulled / ((0.01 * pulled**2).sqrt() + 1e-2))


def test_learning_rates_by_hand():
    lr = lambda step, schedule: Settings(10, 2.0, warmup_steps=2, schedule=schedule).lr_at(step)  # noqa: E731
    assert [lr(s, schedule="linear") for s in (0, 1, 2, 6, 9)] == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.25])
    assert [lr(s, schedule="cosine") for s in (0, 1, 2, 4, 6)] == pytest.approx(
        [1.0, 2.0, 2.0, 1 + math.cos(math.pi / 4), 1.0]
    )
    assert [lr(s, schedule="constant") for s in (1, 2, 9)] == [2.0, 2.0, 2.0]
    assert [Settings(2, 1.0, warmup_steps=2, schedule="linear").lr_at(s) for s in (0, 1, 2)] == [0.5, 1, 1]


def test_warmup_is_a_share_below_one_and_else_a_number():
    assert [warmup_steps(w, 25) for w in (0.0, 0.1, 0.999, 1.0, 7.0)] == [0, 3, 25, 1, 7]


def test_only_what_asks_for_a_gradient_trains():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert list(trainable(model)) == ["1.weight", "1.bias"]


# the loop


def scene(**settings: Any) -> tuple[Any, Method, Feed, Settings]:
    model = make("llama")
    choose_sharing(model)
    method = Method.of(objectives.get("dpo"), {"beta": 1.0}, live_reference(model))
    feed = Feed(random_trees(8), (), 4, 0, Layout("shared", 1000))
    return model, method, feed, Settings(**{"steps": 1, "lr": 0.5} | settings)


def moved_by(max_grad_norm: float) -> tuple[float, float]:
    """The step of plain gradient descent at a rate of 1/2, and the gradient norm that it reports."""
    model, method, feed, settings = scene(max_grad_norm=max_grad_norm)
    before = torch.cat([p.detach().flatten() for p in trainable(model).values()]).double()
    records: list[dict[str, Any]] = []
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1.0)
    fit(model, method, feed, optimizer, settings, hooks=Hooks(log=records.append), state=State())
    after = torch.cat([p.detach().flatten() for p in trainable(model).values()]).double()
    return float((after - before).norm()), records[-1]["grad_norm"]


def test_gradients_are_clipped_to_the_stated_norm_and_0_clips_nothing():
    free, norm = moved_by(0.0)
    assert norm > 1
    assert free == pytest.approx(0.5 * norm, rel=1e-3)
    clipped, reported = moved_by(0.25)
    assert clipped == pytest.approx(0.5 * 0.25, rel=1e-3)
    assert reported == pytest.approx(norm, rel=1e-6), "the norm before clipping"
    wide, _ = moved_by(2 * norm)
    assert wide == pytest.approx(free, rel=1e-6)


def test_groups_have_rates_of_their_own():
    model, method, feed, settings = scene(steps=2, lr=1.0, warmup_steps=4)
    first, *rest = trainable(model).values()
    optimizer = make_optimizer([{"params": [first]}, {"params": rest, "lr_scale": 3.0}])
    rates: list[list[float]] = []
    hooks = Hooks(stepped=lambda step: rates.append([group["lr"] for group in optimizer.param_groups]))
    fit(model, method, feed, optimizer, settings, hooks=hooks, state=State())
    assert rates == [[0.25, 0.75], [0.5, 1.5]]


def judged(figures: list[dict[str, float]], patience: int = 0) -> tuple[State, list[int], str]:
    """A run whose evaluations give these figures: its state, the steps that were best so far, and why it stopped."""
    model, method, feed, settings = scene(steps=len(figures) - 1, eval_every_steps=1, patience=patience)
    coming, improved, state = iter(figures), [], State()
    hooks = Hooks(evaluate=lambda step, carried: next(coming), improved=lambda s: improved.append(s.best_step))
    optimizer = make_optimizer(trainable(model).values())
    return state, improved, fit(model, method, feed, optimizer, settings, hooks=hooks, state=state)


def test_the_best_evaluation_has_the_lowest_loss():
    state, improved, reason = judged([{"loss": x} for x in (3.0, 2.0, 2.0, 2.5, 1.0)])
    assert improved == [0, 1, 4]
    assert (state.best_loss, state.best_step, state.stale_evaluations, reason) == (1.0, 4, 0, "finished")


def test_without_a_loss_the_best_evaluation_has_the_highest_objective():
    state, improved, _ = judged([{"objective": x} for x in (1.0, 3.0, 2.0)])
    assert improved == [0, 1]
    assert (state.best_loss, state.best_step, state.stale_evaluations) == (-3.0, 1, 1)


def test_patience_counts_evaluations_that_are_no_better():
    state, _, reason = judged([{"loss": x} for x in (1.0, 1.0, 0.5, 0.5, 0.6, 0.1)], patience=2)
    assert (reason, state.step, state.best_step) == ("early", 4, 2)


def test_intervals_and_counts_of_a_run():
    model, method, feed, settings = scene(steps=5, log_every_steps=2, eval_every_steps=3, save_every_steps=2)
    records, saved, state = [], [], State()
    hooks = Hooks(
        log=records.append,
        evaluate=lambda step, carried: {"loss": 1.0},
        save=lambda s: saved.append(s.step),
    )
    fit(model, method, feed, make_optimizer(trainable(model).values()), settings, hooks=hooks, state=state)
    steps = {kind: [r["step"] for r in records if r["kind"] == kind] for kind in ("train", "eval")}
    assert steps == {"train": [2, 4, 5], "eval": [0, 3, 5]}
    assert saved == [2, 4, 5]
    assert state.examples == 5 * 4
    assert state.tokens == sum(feed.update(step).n_tokens for step in range(5))
    assert [r["epoch"] for r in records if r["kind"] == "train"] == [1.0, 2.0, 2.5]


# method, constraints, controller


def test_a_sum_s_value_at_the_reference_is_that_of_its_weighted_terms():
    terms = objectives.bind("0.5*dpo + 2*ipo", {"beta": 0.5})
    assert Method(terms).at_reference() == pytest.approx(0.5 * math.log(2) + 2 * 1.0)
    assert Method(terms).name == "0.5*dpo + 2*ipo"
    assert Method(objectives.bind("dpo + odpo")).at_reference() is None


def test_the_main_term_is_on_pairs_then_groups_then_responses_then_tokens():
    main = lambda expression: Method(objectives.bind(expression)).main.name  # noqa: E731
    assert main("nll + bco + plackett_luce + ipo") == "ipo"
    assert main("nll + bco + plackett_luce") == "plackett_luce"
    assert main("nll + bco") == "bco"


@pytest.mark.parametrize(("name", "nu"), [("rao_kupper", 1.5), ("davidson", 0.25)])
def test_a_learned_parameter_starts_at_its_stated_value(name, nu):
    """Above its infimum, 1 or 0, through softplus, whose inverse is the raw value."""
    term = Term(objectives.get(name), {**objectives.get(name).parameters, "nu": nu})
    raw = raw_parameter(term, "nu")
    method = Method((term,), learned={f"{name}.nu": raw})
    assert float(method.learned_values(term)["nu"]) == pytest.approx(nu, rel=1e-6)
    with torch.no_grad():
        raw.fill_(-100.0)
    assert float(method.learned_values(term)["nu"]) == pytest.approx(1.0 if name == "rao_kupper" else 0.0, abs=1e-6)
    assert parameters_by_name({"w": raw}, method) == {"w": raw, f"objective/{name}.nu": raw}


def test_what_a_method_carries_begins_where_its_terms_say():
    held = Constraint("c", lambda *a: a[1].mean(), dual_lr=0.5)
    method = Method(objectives.bind("bco_pair + epsilon_dpo", {"epsilon_dpo.beta": 0.5}), constraints=(held,))
    start = method.start()
    assert start == {"bco_pair/shift": 0.0, "epsilon_dpo/beta": 0.5, "constraint/c/multiplier": 0.0}
    assert state_of(method.terms[1], start) == {"beta": 0.5}


def test_a_penalty_acts_above_its_bound_and_a_multiplier_as_it_stands():
    penalty, dual = (
        Constraint("c", lambda *a: a[1].mean(), bound=2.0, **how) for how in ({"weight": 3.0}, {"dual_lr": 0.5})
    )
    assert [penalty.slope(value, {}) for value in (1.0, 2.0, 2.5)] == [0.0, 0.0, 3.0]
    assert penalty.next_multiplier(9.0, {}) == {}
    assert [dual.slope(9.0, carried) for carried in ({}, {"constraint/c/multiplier": 0.75})] == [0.0, 0.75]
    assert dual.next_multiplier(5.0, {"constraint/c/multiplier": 0.25}) == {"constraint/c/multiplier": 1.75}
    assert dual.next_multiplier(5.0, {}) == {"constraint/c/multiplier": 1.5}
    assert dual.next_multiplier(0.0, {"constraint/c/multiplier": 0.25}) == {"constraint/c/multiplier": 0.0}


def test_the_strength_of_the_penalty_follows_its_answers():
    """Four answers of KL 3 at a target of 2: 0.1 (1 + 0.2 * 4 / 8)."""
    trees = [tree(f"p{k}", [3], [[4], [5]]) for k in range(2)]
    rollout = Rollout(0, trees, [0, 1], 0.1, 3.0)
    assert Controller(0.4, 2.0, 8).kl_coef_after(rollout) == pytest.approx(0.1 * 1.1)
    assert Controller(0.4).kl_coef_after(rollout) == 0.1
    assert Controller(0.4, 2.0, 8).kl_coef_after(None) == 0.4


# losses of an update and of held-out data


def test_running_numbers_are_those_before_the_update_and_move_after_it():
    """BCO's shift: the loss uses the incoming value; the outgoing one is a tenth of the way to the middle."""
    model, _, feed, _ = scene()
    other = make("llama", seed=1)
    choose_sharing(other)
    method = Method.of(objectives.get("bco_pair"), {"beta": 1.0}, Frozen(other))
    update = feed.update(0)
    result = accumulate(model, method, update, {"bco_pair/shift": 2.0})
    (batch,) = update.batches
    with torch.no_grad():
        rho = Frozen(model).score(batch).logps - Frozen(other).score(batch).logps
    good, bad = rho[0::2], rho[1::2]
    middle = 0.5 * float(good.mean() + bad.mean())
    assert result.carried["bco_pair/shift"] == pytest.approx(0.9 * 2.0 + 0.1 * middle, rel=1e-5)
    expected = -(torch.nn.functional.logsigmoid(good - 2) + torch.nn.functional.logsigmoid(2 - bad)).mean()
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(result.metrics["bco_pair/shift"][0]) == 2.0


def test_perplexity_is_that_of_the_loss_per_token():
    model, *_ = scene()
    trees = [replace(only_branch(t, 0), preferences=(), labels=(True,)) for t in random_trees(3)]
    figures = evaluate(model, Method.of(objectives.get("sft")), [collate(trees, "shared")])
    with torch.no_grad():
        logps = Frozen(model).score(collate(trees, "shared")).token_logps
    assert figures["loss"] == pytest.approx(-float(logps.mean()), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(-float(logps.mean())), rel=1e-5)


def test_held_out_losses_of_a_sum_are_weighted():
    model, _, feed, _ = scene()
    other = make("llama", seed=1)
    choose_sharing(other)
    batches = feed.update(0).batches
    both = Method(objectives.bind("0.25*dpo + 2*ipo", {"beta": 0.5}), Frozen(other))
    figures = evaluate(model, both, batches)
    assert figures["loss"] == pytest.approx(0.25 * figures["loss/dpo"] + 2 * figures["loss/ipo"])
    alone = evaluate(model, Method.of(objectives.get("ipo"), {"beta": 0.5}, Frozen(other)), batches)
    assert figures["loss/ipo"] == pytest.approx(alone["loss"])


def test_a_negative_estimate_of_the_kl_is_shown_as_0_and_a_positive_one_as_it_is():
    """Rows of other prompts under a policy that equals its reference but for their log-probs."""
    model, *_ = scene()
    objective = objectives.get("kto")
    rows = [replace(only_branch(t, 0), preferences=(), labels=(True,)) for t in random_trees(4)]
    batch, shown = collate(rows, "shared"), []
    for value in (-1.5, 2.5):

        def statistic(policy: Scored, reference: Scored, value: float = value) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor(2 * value), torch.tensor(2.0)

        method = Method.of(replace(objective, statistic=statistic), {}, live_reference(model))
        seen = float(accumulate(model, method, Update([batch], [batch], 4)).metrics["kl_estimate"][0])
        shown.append((seen, evaluate(model, method, [batch], [batch])["kl_estimate"]))
    assert shown == [(0.0, 0.0), (2.5, 2.5)]


def test_a_term_s_gradient_is_times_its_weight():
    model, method, feed, _ = scene()
    update = feed.update(0)
    gradients = []
    for weight in (1.0, 0.25):
        model.zero_grad()
        accumulate(model, replace(method, terms=(replace(method.terms[0], weight=weight),)), update)
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(model).values()]))
    torch.testing.assert_close(gradients[1], 0.25 * gradients[0], rtol=1e-5, atol=1e-9)


def test_opinions_of_a_batch_are_those_of_its_trees():
    first = replace(random_trees(1)[0], preferences=(Preference(1, 0, 0.75, 2.0, -3.0),), scores=(1.0, None))
    second = replace(random_trees(2)[1], labels=(True, False))
    said: Pairs = host_pairs(collate([first, second], "shared"))
    assert (said.yw_idxs.tolist(), said.yl_idxs.tolist()) == ([1, 2], [0, 3])
    assert (said.p.tolist(), said.weight.tolist(), said.margin.tolist()) == ([0.75, 1], [2.0, 1], [-3.0, 0])
    assert said.group_of.tolist() == [0, 0, 1, 1]
    assert said.desirable[2:].tolist() == [1.0, 0.0]
    assert said.desirable[:2].isnan().all()
    assert said.score[0] == 1.0
    assert said.score[1:].isnan().all()


def test_updates_per_epoch_of_rollouts_count_their_iterations():
    """Six prompts, four an iteration, two passes in three shares: 6 updates times 6 / 4 iterations."""
    prompts = [tree(f"p{k}", [3], [[4]]) for k in range(6)]
    feed = Rollouts(
        lambda iteration, kl_coef: Rollout(iteration, prompts, [], kl_coef, 0.0), prompts, Layout("shared", 100),
        Controller(0.1), epochs=2, minibatches=3, prompts_per_iteration=4, seed=0,
    )  # fmt: skip
    assert (feed.updates_per_iteration, feed.updates_per_epoch) == (6, 9.0)
