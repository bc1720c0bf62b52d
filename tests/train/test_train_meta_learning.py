"""Gradients of meta-learning: closed forms on quadratics, and identities with training on all tasks at once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import VOCABULARY, make
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, acting_with, add_adapter
from afzal.model.reference import AdapterOff
from afzal.objectives import REGISTRY
from afzal.records import Preference
from afzal.tokens.tree import Tree, tree
from afzal.train.episodes import Episode, Episodes, EpisodeShape, EpisodeUpdate, split_support_query
from afzal.train.feed import Layout, Update
from afzal.train.meta_learning import MetaLearner, Order, task_loss, twice_differentiable
from afzal.train.method import Method
from afzal.train.optim import trainable
from afzal.train.update import accumulate

THETA = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)


def quadratic(centre: float) -> Any:
    return lambda weights: 0.5 * (weights["w"] - centre).square().sum()


@pytest.mark.parametrize("a", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_maml_and_fomaml_on_quadratics(a: float, steps: int):
    """L = (theta - c)^2 / 2: phi_k - c = (1 - a)^k (theta - c)."""
    centre, start = 0.5, {"w": THETA}
    losses = [quadratic(centre)] * steps
    maml = MetaLearner("maml", a).gradient(start, losses, quadratic(centre))["w"]
    first = MetaLearner("fomaml", a).gradient(start, losses, quadratic(centre))["w"]
    assert torch.allclose(maml, (1 - a) ** (2 * steps) * (THETA - centre), atol=1e-12)
    assert torch.allclose(first, (1 - a) ** steps * (THETA - centre), atol=1e-12)


def test_maml_with_other_support_than_query():
    """d/dtheta of (phi - q)^2 / 2 with phi = theta - a (theta - s): (1 - a) (theta - a (theta - s) - q)."""
    a, support, query = 0.3, 2.0, -1.0
    gradient_of_w = MetaLearner("maml", a).gradient({"w": THETA}, [quadratic(support)], quadratic(query))["w"]
    assert torch.allclose(gradient_of_w, (1 - a) * (THETA - a * (THETA - support) - query), atol=1e-12)


def test_reptile_is_the_way_over_the_learning_rate():
    a, start = 0.2, {"w": THETA}
    losses = [quadratic(c) for c in (1.0, -2.0, 0.5)]
    adapting = MetaLearner("reptile", a)
    way = THETA - adapting.adapted(start, losses)["w"]
    assert torch.allclose(adapting.gradient(start, losses, None)["w"], way / a, atol=1e-12)


def trees(n: int, seed: int, better: int = 0) -> list[Tree]:
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, VOCABULARY, size).tolist()  # noqa: E731
    pair = Preference(better, 1 - better)
    return [tree(f"{seed}-{k}", draw(4), [draw(3), draw(5)], pairs=[pair]) for k in range(n)]


@pytest.fixture(params=["lora", "prefix", "prompt"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = add_adapter(make("llama"), Adapter(request.param, rank=2, virtual_tokens=3))
    for p in trainable(made).values():
        p.data.add_(0.02 * torch.randn_like(p))
    return made.eval()


def episodes(layout: Layout, steps: int) -> EpisodeUpdate:
    made = []
    for k in range(2):
        support, query = trees(3, seed=k, better=k), trees(4, seed=10 + k, better=k)
        made.append(Episode(f"task-{k}", (layout.batches(support),) * steps, layout.batches(query)))
    return EpisodeUpdate([b for e in made for b in e.query], [], 14, episodes=tuple(made))


def layout_of(model: Any) -> Layout:
    return Layout("unshared", 4096)


def method_of(model: Any, name: str = "dpo") -> Method:
    return Method.of(REGISTRY[name], reference=AdapterOff(model))


def gradient(model: Any, order: Order, lr: float, lesson: EpisodeUpdate, name: str = "dpo") -> dict[str, Tensor]:
    carriers = trainable(model)
    for p in carriers.values():
        p.grad = None
    MetaLearner(order, lr).accumulate(model, method_of(model, name), lesson, None, carriers)
    return {n: p.grad.clone() for n, p in carriers.items() if p.grad is not None}


def plain(model: Any, update: Update, name: str = "dpo") -> dict[str, Tensor]:
    for p in trainable(model).values():
        p.grad = None
    accumulate(model, method_of(model, name), update)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainable(model).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    assert any(float(value.abs().max()) > 1e-6 for value in a.values()), "nothing to compare"
    return all(torch.allclose(a[n], b[n], rtol=1e-4, atol=1e-7) for n in a)


@pytest.mark.parametrize("order", ["fomaml", "maml"])
@pytest.mark.parametrize(("steps", "lr"), [(0, 0.1), (2, 0.0)])
def test_without_inner_steps_it_is_training_on_all_tasks(model: Any, order: Order, steps: int, lr: float):
    layout = layout_of(model)
    lesson = episodes(layout, steps)
    mixture = Update(lesson.batches, [], 8)
    assert same(gradient(model, order, lr, lesson), plain(model, mixture))


def test_reptile_with_one_step_is_gradient_descent_on_the_mixture(model: Any):
    lesson = episodes(layout_of(model), 1)
    mixture = Update([b for e in lesson.episodes for b in e.support[0]], [], 6)
    assert same(gradient(model, "reptile", 0.3, lesson), plain(model, mixture))


def query_loss(model: Any, method: Method, weights: dict[str, Tensor], lesson: EpisodeUpdate, lr: float) -> float:
    """The mean query loss after adapting from ``weights``, with the steps written out."""
    total = 0.0
    for episode in lesson.episodes:
        phi = weights
        for batches in episode.support:
            leaves = {n: w.detach().requires_grad_() for n, w in phi.items()}
            _, loss = task_loss(model, method, leaves, batches, {})
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            phi = {n: w.detach() - lr * g for (n, w), g in zip(leaves.items(), slopes, strict=True)}
        with torch.no_grad():
            total += float(task_loss(model, method, phi, episode.query, {})[1]) / len(lesson.episodes)
    return total


@pytest.mark.parametrize("name", ["ipo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_maml_is_the_derivative_of_the_adapted_loss(model: Any, name: str):
    """Central differences in float64 along a random direction; the first-order gradient misses them."""
    model.double()
    lesson = episodes(layout_of(model), 2)
    at_start = gradient(model, "fomaml", 0.0, lesson, name)
    lr = 0.05 / float(torch.stack([g.norm() for g in at_start.values()]).norm())  # steps long enough to matter
    # steps of a length that bends the loss
    start = {n: p.detach().clone() for n, p in trainable(model).items()}
    torch.manual_seed(1)
    way = {n: torch.randn_like(w) for n, w in start.items()}
    h = 1e-3  # log-probs are float32: a smaller step would measure their rounding
    method = method_of(model, name)
    up, down = (
        query_loss(model, method, {n: w + s * h * way[n] for n, w in start.items()}, lesson, lr) for s in (1, -1)
    )
    slope = lambda g: sum(float((g[n] * way[n]).sum()) for n in way)  # noqa: E731
    exact, first = (slope(gradient(model, order, lr, lesson, name)) for order in ("maml", "fomaml"))
    truth = (up - down) / (2 * h)
    assert exact == pytest.approx(truth, rel=1e-2)
    assert abs(first - truth) > 4 * abs(exact - truth)


def test_twice_differentiable_leaves_the_log_probs_alone(model: Any):
    lesson = episodes(layout_of(model), 1)
    weights = {n: p.detach() for n, p in trainable(model).items()}
    with torch.no_grad():
        one = task_loss(model, method_of(model), weights, lesson.episodes[0].query, {})[1]
    with torch.no_grad(), twice_differentiable(model):
        two = task_loss(model, method_of(model), weights, lesson.episodes[0].query, {})[1]
    assert float(one) == pytest.approx(float(two), abs=1e-5)


def test_weights_that_act_are_put_back(model: Any):
    before = trainable(model)
    name = next(iter(before))
    other = {n: torch.zeros_like(p, requires_grad=True) for n, p in before.items()}
    with suppress(ArithmeticError), acting_with(model, other):
        assert dict(model.named_parameters())[name] is other[name]
        raise ArithmeticError
    assert trainable(model)[name] is before[name]


def test_the_figures_of_an_update_are_means_over_tasks(model: Any):
    lesson = episodes(layout_of(model), 2)
    adapting, method = MetaLearner("fomaml", 0.5), method_of(model)
    result = adapting.accumulate(model, method, lesson, None, trainable(model))
    start = {n: p.detach() for n, p in trainable(model).items()}
    assert float(result.loss) == pytest.approx(query_loss(model, method, start, lesson, 0.5), rel=1e-5)
    support = [float(task_loss(model, method, start, e.support[0], {})[1]) for e in lesson.episodes]
    total, n = result.metrics["support_loss"]
    assert float(total / n) == pytest.approx(float(np.mean(support)), rel=1e-5)


# -- episodes


def many(prompts: int, per_prompt: int = 1) -> list[Tree]:
    made = []
    for k in range(prompts):
        for m in range(per_prompt):
            made.append(tree(f"{k}-{m}", [3 + k, 4], [[5 + m], [6 + m]], pairs=[Preference(0, 1)]))
    return made


def test_support_and_query_share_no_prompt():
    made = many(12, per_prompt=3)
    feed = Episodes(made, ["a", "b"] * 18, EpisodeShape(2, 5, 7, 1), 0, Layout("unshared", 4096))
    for step in range(30):
        for episode in feed.update(step).episodes:
            keys = [{t.prompt_key for b in part for t, _ in b.sources} for part in (episode.support[0], episode.query)]
            assert keys[0]
            assert keys[1]
            assert not keys[0] & keys[1]


def test_an_update_is_a_function_of_its_step_and_seed():
    made = many(20)
    feed = lambda seed: Episodes(made, ["a", "b", "c", "d"] * 5, EpisodeShape(2, 2, 2, 1), seed, Layout("unshared", 64))  # noqa: E731
    names = lambda seed, step: [(e.task, [b.item_ids for b in e.query]) for e in feed(seed).update(step).episodes]  # noqa: E731
    assert names(0, 7) == names(0, 7)
    assert len({str(names(0, s)) for s in range(8)}) == 8
    assert names(0, 7) != names(1, 7)


def test_few_items_are_divided_in_proportion():
    made = many(6)
    taken, left = split_support_query(made, list(range(6)), 8, 16)
    assert (taken, left) == ([0, 1], [2, 3, 4, 5])
    assert split_support_query(made[:2], [0, 1], 8, 1) == ([0], [1])


def test_reptile_draws_its_support_sets_anew_for_every_step():
    feed = Episodes(many(40), ["a"] * 40, EpisodeShape(1, 4, 0, 3, fresh=True), 0, Layout("unshared", 4096))
    (episode,) = feed.update(0).episodes
    assert len({tuple(i for b in part for i in b.item_ids) for part in episode.support}) == 3
    assert feed.update(0).n_trees == len({i for part in episode.support for b in part for i in b.item_ids})


def test_a_task_of_one_prompt_is_named():
    with pytest.raises(AfzalError, match="tasks with one prompt only: b"):
        Episodes(many(3), ["a", "a", "b"], EpisodeShape(2, 1, 1, 1), 0, Layout("unshared", 64))


def test_held_out_episodes_take_every_item_once():
    made = many(10)
    feed = Episodes(made, ["a", "b"] * 5, EpisodeShape(2, 2, 3, 2), 0, Layout("unshared", 4096))
    for episode in feed.evaluation_episodes():
        ids = [i for part in (episode.support[0], episode.query) for b in part for i in b.item_ids]
        own = [t.item_id for t, task in zip(made, feed.task_of, strict=True) if task == episode.task]
        assert sorted(ids) == sorted(own)
        assert len(episode.support) == 2
