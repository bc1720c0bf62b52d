"""Constraints: costs, gradients, the two ways to enforce them, and a multiplier that survives resumption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import fingerprint, finished, settings, start
from helpers_tokenizers import byte_tokenizer
from transformers import AutoModelForCausalLM

from afzal import config, objectives, recipes, runs
from afzal.errors import AfzalError
from afzal.generate import Sampling
from afzal.lab import exact, language
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.recipes.constraints import score_function, unsafe_likelihood, unsafe_mass
from afzal.tokens import Speaker, only_branch
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree
from afzal.train import checkpoint
from afzal.train.constraints import Constraint, responses
from afzal.train.feed import Feed, Layout, Update
from afzal.train.method import Method
from afzal.train.optim import trainable
from afzal.train.update import accumulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("constraints")
    settings(path, path / "unused")
    return path


def model_and_batch() -> tuple[Any, Any]:
    model = make("llama")
    choose_sharing(model)
    return model, collate(random_trees(5), "shared")


def call(cost: Any, model: Any, batch: Any) -> torch.Tensor:
    pi = score(model, batch).logps
    index = batch.preferences[:, :2].long()
    return cost(model, pi, pi.detach(), index[:, 0], index[:, 1], batch)


def test_unsafe_mass_is_the_mean_probability_at_the_scored_positions():
    model, batch = model_and_batch()
    mass = call(unsafe_mass([7, 9]), model, batch)
    by_hand = []
    for t, k in batch.sources:
        ids = torch.tensor([[*t.prompt.tolist(), *t.branches[k].ids.tolist()]])
        plain = make("llama")
        p = plain(input_ids=ids).logits[0].softmax(-1)
        at = range(len(t.prompt) - 1, ids.shape[1] - 1)
        by_hand += [float(p[i, 7] + p[i, 9]) for i in at]
    assert float(mass.detach()) == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    assert mass.requires_grad


def test_unsafe_likelihood_is_the_mean_of_geometric_mean_probabilities():
    model, batch = model_and_batch()
    trees = [tree("u", [3, 4], [[5, 6]]), tree("v", [8], [[9]])]
    likelihood = call(unsafe_likelihood(trees, Layout("shared", 1000)), model, batch)
    expected = score(model, collate(trees, "shared")).mean_logps.exp().mean()
    torch.testing.assert_close(likelihood, expected)
    assert likelihood.requires_grad


def test_the_score_function_estimate_is_right_in_value_and_direction():
    """One-token answers, so that the cost and its gradient are sums over the vocabulary; 2,048 samples."""
    model = make("llama")
    choose_sharing(model)
    prompt = [3, 4, 5]
    batch = collate([replace(tree(f"i{k}", prompt, [[6]])) for k in range(512)], "shared")
    tokenizer = byte_tokenizer()
    # the scorer sees text, so the cost is a property of the decoded answer: ids of the upper half decode differently
    costs = torch.tensor([float(len(tokenizer.decode([v])) and ord(tokenizer.decode([v])[0]) % 2) for v in range(97)])

    def scorer(asked: str, answer: str) -> float:
        return float(len(answer) and ord(answer[0]) % 2)

    cost = score_function(scorer, Speaker(tokenizer), [], Sampling(max_new_tokens=1), "shared")
    value = call(cost, model, batch)
    estimate = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
    plain = make("llama")
    p = plain(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    exact = (p * costs).sum()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(plain.parameters()))])
    assert float(value.detach()) == pytest.approx(float(exact.detach()), abs=4 * (0.25 / 2048) ** 0.5)
    assert float(torch.cosine_similarity(estimate, gradient, dim=0)) > 0.8
    assert float(estimate.norm() / gradient.norm()) == pytest.approx(1.0, abs=0.4)


def method_with(constraint: Constraint) -> tuple[Any, Method]:
    model = make("llama")
    choose_sharing(model)
    reference = live_reference(model)
    return model, replace(Method.of(objectives.get("dpo"), {"beta": 0.1}, reference), constraints=(constraint,))


def gradient_of(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainable(model).values()])


@pytest.mark.parametrize("held", [{"weight": 3.0, "bound": -50.0}, {"weight": 3.0, "bound": 50.0}, {"dual_lr": 0.1}])
def test_a_cost_that_is_a_mean_does_not_depend_on_accumulation(held):
    """The mean over the update, not over a micro-batch, decides whether a bound is exceeded."""
    results = []
    for budget in (10_000, 60):
        model, method = method_with(Constraint("mean", lambda m, pi, *_: pi.mean(), **held))
        update = Feed(random_trees(8), (), 8, 0, Layout("shared", budget)).update(0)
        carried = {**method.start(), **({"constraint/mean/multiplier": 2.0} if "dual_lr" in held else {})}
        outcome = accumulate(model, method, update, carried)
        results.append((float(outcome.metrics["constraint/mean"][0]), gradient_of(model), outcome.carried))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=2e-5)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-5)


COUNTED = ["unsafe_mass", "unsafe_likelihood", "black_box"]
SPLITS = [1, 2, 4, 8]


def ready(name: str) -> Any:
    if name == "unsafe_mass":
        return unsafe_mass([7, 9])
    if name == "unsafe_likelihood":  # more than an update takes
        return unsafe_likelihood([only_branch(t, 0) for t in random_trees(40, seed=9)], Layout("shared", 500))
    vowels = lambda asked, answer: float(sum(c in "aeiou" for c in answer)) + len(answer) / 7  # noqa: E731
    return score_function(vowels, Speaker(byte_tokenizer()), [5], Sampling(max_new_tokens=3), "shared")


def cut_update(size: int, number: int = 0) -> Update:
    """Eight items of skewed length in batches of ``size``, as update ``number``."""
    trees = random_trees(8)
    batches = [replace(collate(trees[k : k + size], "shared"), update=number) for k in range(0, 8, size)]
    return Update(batches, [], 8)


def cost_and_gradient(cost: Any, update: Update) -> tuple[float, torch.Tensor]:
    """Cost and gradient of the constraint alone: what a multiplier of 2 adds to the gradient of DPO."""
    gradients, value = [], 0.0
    for multiplier in (2.0, 0.0):
        counts = getattr(cost, "counts", responses)
        model, method = method_with(Constraint("c", cost, dual_lr=0.1, counts=counts))
        outcome = accumulate(model, method, update, {**method.start(), "constraint/c/multiplier": multiplier})
        gradients.append(gradient_of(model).double())
        value = float(outcome.metrics["constraint/c"][0])
    return value, gradients[0] - gradients[1]


@pytest.mark.parametrize("name", COUNTED)
def test_a_ready_cost_and_its_gradient_do_not_depend_on_how_the_update_is_cut(name):
    """8 x 1, 4 x 2, 2 x 4 and 1 x 8."""
    value, gradient = cost_and_gradient(ready(name), cut_update(8))
    assert gradient.norm() > 0
    for size in SPLITS[:-1]:
        other, cut = cost_and_gradient(ready(name), cut_update(size))
        assert other == pytest.approx(value, rel=1e-5), size
        assert float((cut - gradient).norm() / gradient.norm()) < 1e-3, size


def test_the_cost_of_an_update_is_its_sum_over_its_count():
    """Batches of 2 and 6 items whose cost is a mean over tokens; a mean over responses would differ."""
    trees = random_trees(8)
    update = Update([collate(trees[:2], "shared"), collate(trees[2:], "shared")], [], 8)
    tokens = [int(b.scored.sum()) for b in update.batches]
    cost = lambda m, pi, ref, yw, yl, batch: pi.sum() / batch.scored.sum()  # noqa: E731
    value, _ = cost_and_gradient(cost, update)
    cost.counts = lambda batch: float(batch.scored.sum())
    counted, _ = cost_and_gradient(cost, update)
    model, _ = method_with(Constraint("c", cost, dual_lr=0.1))
    per_token = torch.cat([score(model, b).token_logps for b in update.batches])
    assert counted == pytest.approx(float(per_token.mean()), rel=1e-5)
    halves = [float(score(model, b).token_logps.mean()) for b in update.batches]
    assert value == pytest.approx(0.25 * halves[0] + 0.75 * halves[1], rel=1e-5)
    assert tokens[0] / sum(tokens) != pytest.approx(0.25, abs=0.05)


def test_answers_are_drawn_anew_in_every_update():
    cost = ready("black_box")
    values = [cost_and_gradient(cost, cut_update(8, number))[0] for number in (0, 1, 0)]
    assert values[0] == values[2] != values[1]
    batches = Feed(random_trees(8), (), 4, 0, Layout("shared", 50)).update(3).batches
    assert {b.update for b in batches} == {3}
    assert len(batches) > 1


def test_the_baseline_is_the_mean_of_the_prompt_s_other_answers():
    """Costs that differ only between prompts have no gradient: no answer is better than others to its prompt."""
    model = make("llama")
    choose_sharing(model)
    batch = collate(random_trees(4), "shared")
    costs = iter(range(100))
    ranks = {}

    def by_prompt(asked: str, answer: str) -> float:
        return float(ranks.setdefault(asked, next(costs)))

    cost = score_function(by_prompt, Speaker(byte_tokenizer()), [], Sampling(max_new_tokens=2), "shared")
    value = call(cost, model, batch)
    assert float(value.detach()) == pytest.approx(sum(ranks.values()) / len(ranks))
    gradient = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradient if g is not None) == 0.0


def test_an_inactive_constraint_leaves_the_gradient_bit_for_bit():
    plain, free = method_with(Constraint("never", lambda m, pi, *_: pi.mean(), bound=1e9, weight=1.0))
    update = Feed(random_trees(8), (), 8, 0, Layout("shared", 10_000)).update(0)
    accumulate(plain, free, update)
    other, _ = method_with(Constraint("unused", lambda m, pi, *_: pi.mean(), weight=1.0))
    accumulate(other, Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(other)), update)
    torch.testing.assert_close(gradient_of(plain), gradient_of(other), rtol=0, atol=0)


def test_the_multiplier_climbs_while_the_bound_is_broken_and_never_falls_below_zero():
    constraint = Constraint("c", lambda *a: a[1].mean(), bound=1.0, dual_lr=0.5)
    carried = {constraint.multiplier_key: 0.0}
    course = []
    for value in (3.0, 2.0, 1.0, -1.0, -5.0, 2.0):
        carried = constraint.next_multiplier(value, carried)
        course.append(carried[constraint.multiplier_key])
    assert course == [1.0, 1.5, 1.5, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (lambda m, pi, *_: pi.mean().detach(), "constraint 'bad' has no gradient"),
        (lambda m, pi, *_: pi, "must give a scalar tensor, not (16,)"),
        (lambda m, pi, *_: 0.5, "must give a scalar tensor, not float"),
    ],
)
def test_a_constraint_that_cannot_act_is_refused_by_name(cost, said):
    model, method = method_with(Constraint("bad", cost, weight=1.0))
    with pytest.raises(AfzalError) as caught:
        accumulate(model, method, Feed(random_trees(8), (), 8, 0, Layout("shared", 10_000)).update(0))
    assert said in str(caught.value)


def test_a_constraint_is_held_in_one_way():
    for both in ({}, {"weight": 1.0, "dual_lr": 1.0}):
        with pytest.raises(AfzalError, match="only one of them"):
            Constraint("c", lambda *a: a[1].mean(), **both)


SHORT = {"epochs": 6.0, "max_steps": 24, "lr": 3e-3, "eval_every_steps": None, "save_every_steps": None}


def run(folder: Path, out: Path, **overrides: Any) -> runs.Run:
    return runs.open_run(recipes.train(config.make("prefer", **settings(folder, out, **(SHORT | overrides)))))


@pytest.mark.parametrize("held", [{"constraint_weight": 500.0}, {"constraint_dual_lr": 5000.0}])
def test_token_mass_is_brought_down_to_its_bound(folder, tmp_path, held):
    """The letter e in a run's answers: below its bound with the constraint, above it without."""
    mass = {"constraint": "unsafe_mass", "constraint_tokens": ["e"], "constraint_bound": 0.002}
    lines = run(folder, tmp_path / "held", **mass, **held).metrics("train")
    assert lines[0]["constraint/unsafe_mass"] > 0.002
    assert lines[-1]["constraint/unsafe_mass"] < 0.0025
    if "constraint_dual_lr" in held:
        assert min(line["constraint/unsafe_mass/multiplier"] for line in lines) >= 0
        assert max(line["constraint/unsafe_mass/multiplier"] for line in lines) > 0


def test_known_unsafe_completions_become_less_likely(folder, tmp_path):
    path = tmp_path / "unsafe.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Q{i}?", "completion": " bad words"}) + "\n" for i in range(4)))
    given = {"constraint": "unsafe_likelihood", "constraint_data": str(path), "constraint_weight": 50.0}
    lines = run(folder, tmp_path / "held", **given).metrics("train")
    assert lines[-1]["constraint/unsafe_likelihood"] < 0.8 * lines[0]["constraint/unsafe_likelihood"]


SCORER = "def shouting(prompt, answer):\n    return float(sum(c.isupper() for c in answer))\n"


@pytest.mark.slow
def test_a_run_under_a_black_box_score_resumes_to_the_same_bytes(folder, tmp_path, monkeypatch):
    (tmp_path / "my_score.py").write_text(SCORER)
    monkeypatch.chdir(tmp_path)
    given = {
        "constraint": "black_box",
        "constraint_score": "my_score:shouting",
        "constraint_bound": 0.1,
        "constraint_dual_lr": 2.0,
        "sample_tokens": 3,
        "objective": "dpo",
    }
    whole = settings(folder, tmp_path / "whole", **(SHORT | given | {"save_every_steps": 1, "keep_checkpoints": 99}))
    recipes.train(config.make("prefer", **whole))
    lines = runs.open_run(tmp_path / "whole").metrics("train")
    assert max(line["constraint/black_box/multiplier"] for line in lines) > 0
    cut = whole | {"out": str(tmp_path / "cut")}
    assert finished(start("prefer", cut)) == 0
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.step_of(path) > 10:
            shutil.rmtree(path)
    assert finished(start("prefer", cut, resume=True)) == 0
    again = whole | {"out": str(tmp_path / "again")}
    assert finished(start("prefer", again)) == 0
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "again")


FIVES = np.broadcast_to((language.RESPONSES == 5).sum(1), (8, len(language.RESPONSES)))
"""``[X, Y]`` what the scorer counts, for the exact expectation."""


def expected_fives(folder: Path, step: int | None = None) -> float:
    """The expected number of the token 5 in an answer, exactly: the sum over all answers to eight prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if step is not None:
        model.load_state_dict(checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")[0]["model"])
    return exact.expected(exact.log_policy(model, language.prompts()[1][:8]), FIVES)


@pytest.mark.parametrize(
    ("held", "steps"),
    [({"constraint_weight": 20.0}, 24), pytest.param({"constraint_dual_lr": 1.0}, 40, marks=pytest.mark.slow)],
    ids=["penalty", "multiplier"],
)
def test_a_black_box_score_is_held_where_the_preferences_would_raise_it(tmp_path, monkeypatch, held, steps):
    """Every vote is for the answer with more fives: 0.46 of them at the start, about 2 without the constraint.

    Costs are exact expectations averaged over the policies of the last third of training, so that neither a draw nor
    the oscillation of a multiplier decides.
    """
    (tmp_path / "my_fives.py").write_text("def fives(prompt, answer):\n    return float(answer.count('5'))\n")
    monkeypatch.chdir(tmp_path)
    train_prompts, _ = language.prompts()
    start = language.save_model(tmp_path / "start")
    pairs = language.sample_pairs(language.sft_policy(train_prompts), 40 * 32, np.random.default_rng(0))
    more = (language.RESPONSES[pairs[1]] == 5).sum(1) - (language.RESPONSES[pairs[2]] == 5).sum(1)
    data = language.write_pairs(
        language.pair_items(train_prompts, pairs, language.deterministic(more, np.random.default_rng(1))),
        tmp_path / "pairs.jsonl",
    )
    common = {
        **language.SETTINGS,
        "objective": "dpo",
        "batch_size": 32,
        "lr": 2e-3,
        "max_steps": steps,
        "eval_fraction": 0.0,
        "save_every_steps": 2,
        "keep_checkpoints": 99,
        "device": "cpu",
    }
    constraint = {"constraint": "black_box", "constraint_score": "my_fives:fives", "constraint_bound": 0.3}

    def late(name: str, **extra: Any) -> float:
        made = config.make("prefer", model=str(start), data=str(data), out=str(tmp_path / name), **common, **extra)
        run = recipes.train(made)
        return float(np.mean([expected_fives(run, step) for step in range(2 * steps // 3, steps + 1, 2)]))

    before, free, kept = expected_fives(start), late("free"), late("held", **constraint, **held)
    assert free > 3 * before
    assert kept < 0.3 * 1.25 < before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"constraint": "unsafe_mass", "constraint_tokens": ["please"]}, "'please' is 6 tokens of this model, not one"),
        ({"constraint": "json:nothing"}, "has no function 'nothing'"),
        ({"constraint": "black_box", "constraint_score": "nowhere:f"}, "there is no module 'nowhere'"),
    ],
)
def test_what_a_constraint_needs_and_is_not_there_is_named(folder, tmp_path, given, said):
    with pytest.raises(AfzalError) as caught:
        run(folder, tmp_path / "run", **given, constraint_weight=1.0)
    assert said in str(caught.value)


def test_only_branch_keeps_a_score_with_its_response():
    t = replace(random_trees(1, k=3)[0], labels=(True, None, False), scores=(2.0, None, 0.5))
    assert [(only_branch(t, k).labels, only_branch(t, k).scores) for k in range(3)] == [
        ((True,), (2.0,)),
        ((None,), (None,)),
        ((False,), (0.5,)),
    ]
