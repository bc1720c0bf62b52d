"""Meta-learning: learn an adapter that a few steps on a new task turn into a good one.

Inner steps are plain gradient descent on a task's support set: phi_0 = theta, phi_{j+1} = phi_j - a grad L(phi_j).
The gradient of an update is the mean over its tasks of

- MAML: d L_query(phi_k) / d theta, through the inner steps (Finn, Abbeel and Levine 2017, arXiv 1703.03400, alg. 1);
- FOMAML: grad L_query at phi_k, with the inner steps as constants (ibid., sec. 5.2);
- Reptile: (theta - phi_k) / a, the sum of the gradients along the way, each on different items (Nichol, Achiam and
  Schulman 2018, arXiv 1803.02999, alg. 1).

Without inner steps, or with a = 0, MAML and FOMAML are training on all tasks together; Reptile with one step is
gradient descent on the mixture. The reference is the same for inner and outer losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from afzal.model import kernels
from afzal.model.adapters import acting_with
from afzal.model.logprobs import output_head
from afzal.model.reference import MemoizedReference
from afzal.objectives.metrics import Tally, add, means
from afzal.tokens.batch import Batch
from afzal.train.episodes import Episode, EpisodeUpdate
from afzal.train.evaluate import Losses, by_term, evaluate, join_batches, losses_of, score_batch, weighted_mean
from afzal.train.feed import Update
from afzal.train.method import Carried, Method
from afzal.train.update import Outcome

Order = Literal["fomaml", "reptile", "maml"]
Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]


@dataclass(frozen=True, slots=True)
class MetaLearner:
    """How to adapt to a task: the meta-gradient, and the learning rate of the inner steps."""

    order: Order
    lr: float

    def accumulate(
        self, model: Any, method: Method, update: Update, carried: Carried | None, carriers: Mapping[str, nn.Parameter]
    ) -> Outcome:
        """Compute the gradient of an update's episodes, into the ``grad`` of ``carriers``, and its metrics.

        ``loss`` is the mean over tasks of the query-set loss after adapting (for Reptile, the support-set losses along
        the way); ``support_loss`` is the support-set loss before.

        Args:
            carriers: the trainable weights, by name.
        """
        assert isinstance(update, EpisodeUpdate)
        running = carried if carried is not None else method.start()
        method = with_memoized_reference(method)
        start = {name: p.detach() for name, p in model.named_parameters() if name in carriers}
        total = {name: torch.zeros_like(p) for name, p in start.items()}
        metrics: Tally = {}
        for episode in update.episodes:
            gradient, figures = self._task_gradient(model, method, episode, start, running)
            add(metrics, figures)
            for name, part in gradient.items():
                total[name].add_(part, alpha=1 / len(update.episodes))
        for name, carrier in carriers.items():
            carrier.grad = total[name]
        loss, n = metrics["loss"]
        return Outcome(loss / n, metrics, dict(running))

    def gradient(self, start: Weights, support: Sequence[Loss], query: Loss | None) -> Weights:
        """The gradient of one task at the weights ``start``; only Reptile has ``query`` None."""
        if query is None:
            total, weights = {name: torch.zeros_like(w) for name, w in start.items()}, start
            for loss in support:
                slope = _gradient(loss, weights)
                total = {name: value + slope[name] for name, value in total.items()}
                weights = self._step(weights, slope)
            return total
        if self.order == "maml":
            return self._maml_gradient(start, support, query)
        return _gradient(query, self.adapted(start, support))

    def adapted(self, start: Weights, support: Sequence[Loss]) -> Weights:
        """The weights after one inner step on each support loss, as constants."""
        weights = start
        for loss in support:
            weights = self._step(weights, _gradient(loss, weights))
        return weights

    def _step(self, weights: Weights, slope: Weights) -> Weights:
        return {name: w.detach() - self.lr * slope[name] for name, w in weights.items()}

    def _maml_gradient(self, start: Weights, support: Sequence[Loss], query: Loss) -> Weights:
        leaves = {name: w.detach().requires_grad_() for name, w in start.items()}
        weights: Weights = leaves
        for loss in support:
            parts = torch.autograd.grad(
                loss(weights), list(weights.values()), create_graph=True, materialize_grads=True
            )
            weights = {name: w - self.lr * g for (name, w), g in zip(weights.items(), parts, strict=True)}
        parts = torch.autograd.grad(query(weights), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, parts, strict=True))

    def _task_gradient(
        self, model: Any, method: Method, episode: Episode, start: Weights, carried: Carried
    ) -> tuple[Weights, Tally]:
        history: list[Losses] = []
        support = [_loss_on(batches, model, method, carried, history) for batches in episode.support]
        query = None if self.order == "reptile" else _loss_on(episode.query, model, method, carried, history)
        with twice_differentiable(model) if self.order == "maml" else nullcontext():
            gradient = self.gradient(start, support, query)
        metrics: Tally = {}
        for losses in history if query is None else history[-1:]:
            add(metrics, {**losses.metrics, "loss": _mean(method, losses)})
        return gradient, {**metrics, "support_loss": _mean(method, history[0])} if support else metrics


def _gradient(loss: Loss, weights: Weights) -> Weights:
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    parts = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, parts, strict=True))


def _loss_on(batches: Sequence[Batch], model: Any, method: Method, carried: Carried, history: list[Losses]) -> Loss:
    """The loss of a set as a function of the weights; each call appends its losses to ``history``."""

    def loss(weights: Weights) -> Tensor:
        losses, value = task_loss(model, method, weights, batches, carried)
        history.append(replace(losses, sums=tuple(s.detach() for s in losses.sums)))
        return value

    return loss


def _mean(method: Method, losses: Losses) -> tuple[Tensor, Tensor]:
    """A set's mean loss with count 1, since it counts once for its task."""
    return weighted_mean(method, by_term(method, losses))


def task_loss(
    model: Any, method: Method, weights: Weights, batches: Sequence[Batch], carried: Carried
) -> tuple[Losses, Tensor]:
    """The weighted mean loss over all batches, with a graph to ``weights``, which replace the model's."""
    with acting_with(model, weights):
        scored = [score_batch(model, method, batch) for batch in batches]
    losses = losses_of(method, join_batches(scored) if len(scored) > 1 else scored[0], carried, {})
    parts = zip(method.terms, losses.sums, losses.counts, strict=True)
    return losses, torch.stack([term.weight * s / torch.where(n > 0, n, 1.0) for term, s, n in parts]).sum()


def with_memoized_reference(method: Method) -> Method:
    """The method with a reference that scores each batch once, however many inner steps see it."""
    return method if method.reference is None else replace(method, reference=MemoizedReference(method.reference))


def evaluate_adaptation(
    model: Any, method: Method, adapting: MetaLearner, episodes: Sequence[Episode], names: Sequence[str]
) -> dict[str, float]:
    """Metrics on the query sets of held-out episodes, as means over tasks: after adapting, and ``before/`` it.

    Args:
        names: of the weights that are adapted.
    """
    start = {name: p.detach() for name, p in model.named_parameters() if name in set(names)}
    after, before = [], []
    for episode in episodes:
        before.append(evaluate(model, method, episode.query))
        steps = [_loss_on(batches, model, method, method.start(), []) for batches in episode.support]
        weights = adapting.adapted(start, steps)
        with acting_with(model, weights):
            after.append(evaluate(model, method, episode.query))
    mean_after = _means(after)
    mean_before = _means(before)
    keys = ("loss", "rewards/accuracies", "rewards/margins")
    return {
        "tasks": float(len(episodes)),
        **mean_after,
        **{f"before/{k}": mean_before[k] for k in keys if k in mean_before},
    }


def _means(per_task: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over tasks of every metric that all of them have, except interval ends of single tasks."""
    shared = [k for k in per_task[0] if all(k in figures for figures in per_task) and not k.endswith(("_low", "_high"))]
    one = torch.ones((), dtype=torch.float64)
    return {k: means({k: (one * sum(f[k] for f in per_task), one * len(per_task))})[k] for k in shared}


@contextmanager
def twice_differentiable(model: Any) -> Iterator[None]:
    """Make attention and output head twice differentiable inside the block."""
    # a hooked head is called as a module; the fused head's custom backward pass is not differentiable
    hook: Callable[..., None] = lambda *_: None  # noqa: E731
    handle = output_head(model).register_forward_hook(hook)
    try:
        with kernels.forced(kernels.BLOCKS), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        handle.remove()
