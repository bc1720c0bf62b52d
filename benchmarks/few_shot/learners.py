"""The learners: ways to a policy from a few labels of a new task, all with the training loop of `afzal train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.lab import language, tasks
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.logprobs import score
from afzal.model.reference import AdapterOff, MemoizedReference
from afzal.objectives import REGISTRY, Scored
from afzal.tokens.batch import Batch, collate
from afzal.tokens.tree import Tree, tree
from afzal.train.episodes import Episodes, EpisodeShape
from afzal.train.feed import Feed
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.meta_learning import MetaLearner
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, trainable
from afzal.train.prior import Prior
from afzal.train.update import Accumulate, accumulate
from benchmarks.few_shot import world as w

LORA = Adapter("lora", rank=8, alpha=16.0)
PROMPT = Adapter("prompt", virtual_tokens=4)
MOST_IN_CONTEXT = 16
"""Maximum number of examples in a prompt; the in-context learner does not see further labels."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How a policy adapts: optimiser, learning rate, updates, pairs per update."""

    optimizer: Any = "adamw"
    lr: float = 5e-3
    steps: int = 40
    batch: int = 32

    @property
    def settings(self) -> Settings:
        """Settings of the loop, with linear decay to 0."""
        return Settings(self.steps, self.lr, schedule="linear")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of a comparison.

    Attributes:
        labels: numbers of target labels, the x axis.
        sources: source tasks for transfer, meta-learning and the in-context learner.
        source_pairs: labels per source task.
        transfer_steps, meta_steps, context_steps: updates on the sources.
    """

    labels: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    sources: int = 16
    source_pairs: int = 400
    sft_steps: int = 250
    transfer_steps: int = 200
    meta_steps: int = 80
    context_steps: int = 120
    seeds: int = 5


QUICK = Sizes(
    labels=(4, 16, 64),
    sources=6,
    source_pairs=64,
    sft_steps=120,
    transfer_steps=30,
    meta_steps=15,
    context_steps=15,
    seeds=2,
)

ADAPT = Steps(lr=3e-3, steps=30)
PROMPT_ADAPT = Steps(lr=3e-2, steps=50)
SOURCE_LR, INNER_LR, INNER_STEPS = 5e-3, 1.0, 3
PRIOR, PROMPT_PRIOR, PRIOR_LABELS = 1.0, 0.02, 8
"""Weights of the prior around a learner's start, at ``PRIOR_LABELS`` labels: the fixed prior keeps its weight, all
others scale it by 1 / labels."""

Weights = Mapping[str, Tensor]


class Policy:
    """The reference with an adapter whose weights can be replaced; without the adapter, the model is the reference."""

    def __init__(self, world: w.World, adapter: Adapter, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = add_adapter(w.model(world), adapter).eval()
        self.beta = world.family.beta
        self.fresh = self.weights()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in trainable(self.model).items()}

    @torch.no_grad()
    def become(self, weights: Weights) -> None:
        for name, p in trainable(self.model).items():
            p.copy_(weights[name])

    @property
    def method(self) -> Method:
        return Method.of(REGISTRY["dpo"], {"beta": self.beta}, MemoizedReference(AdapterOff(self.model)))

    def learn(self, trees: Sequence[Tree], how: Steps, seed: int, gradient: Accumulate = accumulate) -> None:
        """Run the loop of `afzal train dpo` on these trees, from the current weights."""
        feed = _Kept(Feed(trees, (), how.batch, seed, w.layout()))
        optimizer = make_optimizer(trainable(self.model).values(), how.optimizer)
        fit(
            self.model,
            self.method,
            feed,
            optimizer,
            how.settings,
            hooks=Hooks(),
            state=State(),
            gradient=gradient,
        )

    def near(self, weights: Weights, strength: float) -> Accumulate:
        """The gradient with a pull towards these weights."""
        parameters = trainable(self.model)
        return partial(Prior(weights, strength).accumulate, accumulate, parameters, parameters)


class _Kept:
    """A feed that caches updates with the same members, so the reference scores them once."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.layout, self.updates_per_epoch = feed, feed.layout, feed.updates_per_epoch
        self._made: dict[tuple[int, ...], Any] = {}

    def update(self, step: int) -> Any:
        members = tuple(sorted(self.feed.members(step)))
        if members not in self._made:
            self._made[members] = self.feed.update(step)
        return self._made[members]


def transferred(policy: Policy, sources: Mapping[str, Sequence[Tree]], steps: int, seed: int) -> Weights:
    """Adapter weights trained on all source tasks together: general preferences."""
    policy.become(policy.fresh)
    trees = [t for each in sources.values() for t in each]
    policy.learn(trees, Steps(lr=SOURCE_LR, steps=steps, batch=64), seed)
    return policy.weights()


def meta_learned(
    policy: Policy, sources: Mapping[str, Sequence[Tree]], start: Weights, steps: int, seed: int
) -> Weights:
    """Adapter weights meta-learned for a few steps of adaptation (FOMAML), as in `afzal train meta`."""
    policy.become(start)
    trees = [t for each in sources.values() for t in each]
    task_of = [name for name, each in sources.items() for _ in each]
    feed = Episodes(trees, task_of, EpisodeShape(4, 16, 32, INNER_STEPS), seed, w.layout())
    adapting = MetaLearner("fomaml", INNER_LR)
    carriers = trainable(policy.model)
    gradient = partial(adapting.accumulate, carriers=carriers)
    method = Method.of(REGISTRY["dpo"], {"beta": policy.beta}, AdapterOff(policy.model))
    optimizer = make_optimizer(carriers.values())
    fit(
        policy.model,
        method,
        feed,
        optimizer,
        Steps(lr=3e-3, steps=steps).settings,
        hooks=Hooks(),
        state=State(),
        gradient=gradient,
    )
    return policy.weights()


# -- in context


def with_examples(t: Tree, examples: Sequence[Tree]) -> Tree:
    """The tree with labelled examples before its prompt: prompt, preferred and other response, both closed by EOS."""
    before = [i for e in examples for i in _example_ids(e)]
    return Tree(t.item_id, np.asarray([*before, *t.prompt.tolist()], dtype=np.int32), t.branches, t.preferences)


def _example_ids(e: Tree) -> list[int]:
    (pair,) = e.preferences
    better, worse = (e.branches[k].ids.tolist() for k in ((pair.i, pair.j) if pair.p > 0.5 else (pair.j, pair.i)))
    close = lambda ids: ids if ids[-1] == language.EOS else [*ids, language.EOS]  # noqa: E731
    return [*e.prompt.tolist(), *close(better), *close(worse)]


class Plain:
    """The reference's log-probs of the same responses without the examples."""

    name, is_start = "the reference, which sees no examples", True

    def __init__(self, model: Any, plain: Mapping[str, Tree]) -> None:
        self.model, self.plain = model, plain

    def score(self, batch: Batch) -> Scored:
        trees = [self.plain[name] for name in dict.fromkeys(t.item_id for t, _ in batch.sources)]
        with torch.no_grad():
            scores = score(self.model, collate(trees, "shared", w.layout().device))
        return Scored(scores.token_logps, batch.response_of, batch.n_responses)


def in_context(world: w.World, sources: Mapping[str, Sequence[Tree]], steps: int, seed: int) -> Any:
    """A policy trained by DPO to use labels in its prompt (after FSPO, Singh et al. 2025, arXiv 2502.19312)."""
    model = w.model(world).requires_grad_(True)
    reference = w.model(world)
    rng = np.random.default_rng(seed)
    made, plain = [], {}
    names = list(sources)
    for k in range(16 * steps):
        each = sources[names[int(rng.integers(len(names)))]]
        n = int(rng.choice([0, 4, 8, MOST_IN_CONTEXT]))
        drawn = rng.choice(len(each), size=n + 1, replace=False)
        judged = [each[i] for i in drawn]
        bare = Tree(f"context-{k}", judged[0].prompt, judged[0].branches, judged[0].preferences)
        made.append(with_examples(bare, judged[1:]))
        plain[bare.item_id] = bare
    method = Method.of(REGISTRY["dpo"], {"beta": world.family.beta}, Plain(reference, plain))
    optimizer = make_optimizer(trainable(model).values())
    feed = Feed(made, (), 16, seed, w.layout())
    fit(model, method, feed, optimizer, Settings(steps, lr=1e-3, warmup_steps=20), hooks=Hooks(), state=State())
    return model.eval()


def regret_in_context(model: Any, examples: Sequence[Tree], task: tasks.Task, world: w.World) -> float:
    """Exact regret of the policy with these examples in its prompt."""
    branches = [w.response_ids(y) for y in range(len(language.RESPONSES))]
    context = [i for e in examples[:MOST_IN_CONTEXT] for i in _example_ids(e)]
    rows = []
    for x in w.HELD_OUT:
        prompted = tree("x", [*context, *x.tolist(), language.SEP], branches)
        with torch.no_grad():
            rows.append(score(model, collate([prompted], "shared", w.layout().device)).logps.double().numpy())
    return w.regret_of(np.stack(rows), task, world)
