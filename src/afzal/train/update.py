"""One update: the loss of all its micro-batches, its gradient, and the numbers that the method carries on.

Sums are divided by global counts, so the number of micro-batches does not matter. The gradient of pairs is that of
sum(weight * loss) / (items * mean weight of an item in the training set). The divisor is constant except for the number
of items, so over an epoch every pair counts by its own weight whatever the batch size. The reported loss is the
weighted mean over the update, sum(weight * loss) / sum(weight), which can be compared with that of other data.

If a loss couples the batch, all micro-batches are first scored without gradient, the loss is taken once on all of them
with the per-token numbers as leaves, and each micro-batch is scored again to propagate the leaves' gradients (gradient
caching; exact, at the price of one more forward pass).

With several ranks each has its own micro-batches, counts and costs are totals over all ranks, and gradients are summed
over them; for a batch-coupled loss every rank sees all per-token numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afzal.model.reference import score_ahead
from afzal.objectives import Scored
from afzal.objectives.metrics import Tally, add
from afzal.tokens.batch import Batch
from afzal.train import ranks
from afzal.train.constraints import Constraint, cost_of
from afzal.train.evaluate import (
    Losses,
    ScoredBatch,
    batch_counts,
    by_term,
    emptied,
    gather_batches,
    join_batches,
    losses_of,
    pooled_statistics,
    score_batch,
    score_batch_or_empty,
    weighted_mean,
)
from afzal.train.feed import Update
from afzal.train.method import Carried, Method, state_of


class Outcome(NamedTuple):
    """The update's weighted mean loss (without constraints; 0 if nothing has any weight), its metric sums, and the
    running numbers after it.

    ``loss`` is also among the metrics, unless nothing in the update has any weight.
    """

    loss: Tensor
    metrics: Tally
    carried: Carried


Accumulate = Callable[[Any, Method, Update, Carried | None], Outcome]
"""``(model, method, update, running numbers) -> outcome``, which adds the update's gradient to the parameters."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Values shared by the micro-batches of an update."""

    model: Any
    method: Method
    carried: Carried
    counts: Sequence[float]
    pooled: Mapping[str, Tensor]
    counted: Mapping[str, float]  # by constraint, over the update's batches

    def part(self, constraint: Constraint, batch: Batch) -> float:
        """A batch's share in the update's cost: its count, divided by that of the update."""
        total = self.counted[constraint.name]
        return constraint.counts(batch) / total if total else 0.0

    def share(self, losses: Losses) -> Tensor:
        """A batch's part of the scalar whose gradient is the update's."""
        parts = zip(self.method.terms, losses.sums, self.counts, strict=True)
        return torch.stack([(term.weight / n if n else 0.0) * s for term, s, n in parts]).sum()


def accumulate(model: Any, method: Method, update: Update, carried: Carried | None = None) -> Outcome:
    """Compute the loss of the full update, and add its gradient to the parameters.

    An update in which nothing has any weight has a gradient of exactly 0.

    Args:
        carried: the method's running numbers; default: those before the first update.

    Raises:
        AfzalError: a constraint has no gradient.
    """
    carried = method.start() if carried is None else carried
    per_batch = [batch_counts(method, b, update.weight_per_item) for b in update.batches]
    counts = ranks.total([sum(n) for n in zip(*per_batch, strict=True)])
    score_ahead(method.reference, [*update.batches, *update.mismatched])
    pooled = pooled_statistics(model, method, update.mismatched)
    counted = {c.name: sum(c.counts(b) for b in update.batches if not b.idle) for c in method.constraints}
    counted = _over_ranks(method, counted)
    work = _Work(model, method, carried, counts, pooled, counted)
    joint = method.couples_batch and (len(update.batches) > 1 or ranks.world() > 1)
    results, all_scored = (_joint if joint else _separate)(work, update.batches, _costs_before(work, update.batches))
    results = results._replace(costs=_over_ranks(method, results.costs))
    ranks.add_gradients([*method.learned.values(), *(method.critic.unsharded if method.critic is not None else ())])
    return _outcome(work, results, all_scored)


class _Results(NamedTuple):
    losses: list[Losses]
    costs: dict[str, float]


def _separate(work: _Work, batches: Sequence[Batch], before: Mapping[str, float]) -> tuple[_Results, list[ScoredBatch]]:
    results, all_scored = _Results([], {}), []
    for batch in batches:
        if batch.idle:
            all_scored.append(_idle(work, batch))
            continue
        scored = score_batch(work.model, work.method, batch)
        losses = losses_of(work.method, scored, work.carried, work.pooled)
        _backward(work, work.share(losses), scored, batch, before, results.costs)
        results.losses.append(_detached(losses))
        all_scored.append(_constant(scored))
    return results, all_scored


def _joint(work: _Work, batches: Sequence[Batch], before: Mapping[str, float]) -> tuple[_Results, list[ScoredBatch]]:
    with torch.no_grad():
        first = [score_batch_or_empty(work.model, work.method, batch) for batch in batches]
    leaves = [replace(scored, policy=_leaves(scored.policy)) for scored in first]
    all_ranks = gather_batches(join_batches(first))
    all_ranks[ranks.data_rank()] = join_batches(leaves)
    losses = losses_of(work.method, join_batches(all_ranks), work.carried, work.pooled)
    work.share(losses).backward()
    if not ranks.leads():  # all ranks have computed this loss; it counts once
        for raw in work.method.learned.values():
            raw.grad = None
    results = _Results([_detached(losses)] if ranks.leads() else [], {})
    for batch, leaf in zip(batches, leaves, strict=True):
        if batch.idle:
            _idle(work, batch)
            continue
        scored = score_batch(work.model, work.method, batch)
        pulled = [(value * grad).sum() for value, grad in _with_gradients(scored.policy, leaf.policy)]
        _backward(work, torch.stack(pulled).sum(), scored, batch, before, results.costs)
    return results, first


def _idle(work: _Work, batch: Batch) -> ScoredBatch:
    """Take part in a forward and a backward pass of the other ranks, with a gradient of exactly 0."""
    scored = score_batch(work.model, work.method, batch)
    # the other ranks also wait for the passes of a value model and of costs
    numbers = [scored.policy.token_logps, *scored.policy.extras.values()]
    numbers += [_cost(work, c, scored, batch) for c in work.method.constraints]
    (0.0 * torch.stack([n.float().sum() for n in numbers if n.requires_grad]).sum()).backward()
    return _constant(emptied(scored))


def _backward(
    work: _Work,
    share: Tensor,
    scored: ScoredBatch,
    batch: Batch,
    before: Mapping[str, float],
    costs: dict[str, float],
) -> None:
    """Add a micro-batch's gradient, constraints included; ``costs`` collects their costs."""
    for constraint in work.method.constraints:
        value = work.part(constraint, batch) * _cost(work, constraint, scored, batch)
        costs[constraint.name] = costs.get(constraint.name, 0.0) + float(value.detach())
        share = share + constraint.slope(before.get(constraint.name, costs[constraint.name]), work.carried) * value
    if share.requires_grad:
        share.backward()


def _costs_before(work: _Work, batches: Sequence[Batch]) -> dict[str, float]:
    """Costs of penalties before the backward passes: whether a bound is exceeded depends on the full update, so with
    several micro-batches it is computed first."""
    penalties = [c for c in work.method.constraints if c.weight is not None]
    if not penalties or (len(batches) == 1 and ranks.world() == 1):
        return {}
    costs = dict.fromkeys((c.name for c in penalties), 0.0)
    with torch.no_grad():
        for batch in batches:
            scored = score_batch(work.model, work.method, batch)
            for c in penalties:
                cost = _cost(work, c, scored, batch)
                costs[c.name] += 0.0 if batch.idle else work.part(c, batch) * float(cost)
    return _over_ranks(work.method, costs)


def _cost(work: _Work, constraint: Constraint, scored: ScoredBatch, batch: Batch) -> Tensor:
    return cost_of(constraint, work.model, scored.policy, scored.reference, scored.pairs, batch)


def _over_ranks(method: Method, numbers: Mapping[str, float]) -> dict[str, float]:
    """Sums over all ranks of one number per constraint, with the same bits on all ranks."""
    names = [c.name for c in method.constraints]
    return dict(zip(names, ranks.total([numbers.get(name, 0.0) for name in names]), strict=True)) if names else {}


def _outcome(work: _Work, results: _Results, all_scored: Sequence[ScoredBatch]) -> Outcome:
    metrics: Tally = {}
    for losses in results.losses:
        add(metrics, losses.metrics | by_term(work.method, losses))
    metrics = ranks.summed(metrics)
    total, any_weight = weighted_mean(work.method, metrics)
    one = torch.ones_like(total)
    metrics["loss"] = (total, any_weight)
    if len(work.method.terms) == 1:
        metrics.pop(f"loss/{work.method.name}")
    for value in work.pooled.values():
        add(metrics, {"kl_estimate": (value.clamp(min=0).double(), one)})
    add(metrics, {f"learned/{k}": (v.detach().double(), one) for k, v in _learned_values(work.method).items()})
    add(metrics, {name: (one * value, one) for name, value in work.carried.items()})
    add(metrics, {f"constraint/{name}": (one * value, one) for name, value in results.costs.items()})
    return Outcome(total, metrics, _carry_on(work, all_scored, results.costs))


def _carry_on(work: _Work, all_scored: Sequence[ScoredBatch], costs: Mapping[str, float]) -> Carried:
    """The running numbers after the update."""
    updated = dict(work.carried)
    stateful = [term for term in work.method.terms if term.objective.next_state is not None]
    joined = join_batches(gather_batches(join_batches(all_scored))) if stateful else None
    for term in stateful:
        assert joined is not None
        assert term.objective.next_state is not None
        state = state_of(term, work.carried)
        reference = joined.reference if term.objective.needs_reference else None
        next_state = term.objective.next_state(state, joined.policy, reference, joined.pairs, **term.parameters)
        updated |= {f"{term.name}/{key}": value for key, value in next_state.items()}
    for constraint in work.method.constraints:
        updated |= constraint.next_multiplier(costs[constraint.name], work.carried)
    return updated


def _learned_values(method: Method) -> dict[str, Tensor]:
    return {name: value for term in method.terms for name, value in method.learned_values(term).items()}


def _leaves(scored: Scored) -> Scored:
    extras = {name: value.detach().requires_grad_() for name, value in scored.extras.items()}
    return replace(scored, token_logps=scored.token_logps.detach().requires_grad_(), extras=extras)


def _with_gradients(scored: Scored, leaves: Scored) -> list[tuple[Tensor, Tensor]]:
    """Per-token numbers with the gradients of their leaves."""
    pairs = [(scored.token_logps, leaves.token_logps.grad)]
    pairs += [(value, leaves.extras[name].grad) for name, value in scored.extras.items()]
    return [(value, grad) for value, grad in pairs if grad is not None]


def _constant(scored: ScoredBatch) -> ScoredBatch:
    return replace(scored, policy=scored.policy.detach())


def _detached(losses: Losses) -> Losses:
    return replace(losses, sums=tuple(s.detach() for s in losses.sums))
