"""Held-out evaluation by example: every metric is one sum over one count."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.logprobs import score
from afzal.model.reference import Reference
from afzal.objectives import Objective, Pairs, unit_weights
from afzal.objectives.metrics import Tally, add, means, tally
from afzal.tokens.batch import Batch


def batch_pairs(batch: Batch) -> Pairs:
    """The opinions of a batch as objectives take them."""
    rows = batch.preferences
    index, real = rows[:, :2].long(), rows[:, 2:].float()
    return Pairs(index[:, 0], index[:, 1], real[:, 0], real[:, 1], real[:, 2], batch.desirable)


def batch_losses(
    model: Any,
    reference: Reference | None,
    objective: Objective,
    parameters: Mapping[str, Any],
    batch: Batch,
) -> tuple[Tensor, Tensor, Tally]:
    """Losses ``[n]``, their weights ``[n]`` and the metric sums of one batch."""
    policy = score(model, batch)
    ref = reference.score(batch) if reference is not None else None
    pairs = batch_pairs(batch)
    losses, rewards = objective.fn(policy, ref, pairs, **parameters)
    weights = unit_weights(objective.unit, pairs, batch.response_of)
    return losses, weights, tally(objective.unit, policy, rewards, pairs)


def batch_count(objective: Objective, batch: Batch) -> float:
    """The weight of a batch's units, known before any forward pass."""
    return float(unit_weights(objective.unit, batch_pairs(batch), batch.response_of).sum())


def statistic(
    model: Any, reference: Reference | None, objective: Objective, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """For objectives that couple the batch: their statistic over all mismatched rows, as a keyword; else nothing."""
    if objective.statistic is None or reference is None:
        return {}
    if not batches:
        raise AfzalError(f"objective {objective.name!r} needs responses of at least two different prompts")
    with torch.no_grad():
        parts = [objective.statistic(score(model, b), reference.score(b)) for b in batches]
    total, count = (torch.stack(list(x)).sum() for x in zip(*parts, strict=True))
    return {"statistic": total / count}


def evaluate(
    model: Any,
    reference: Reference | None,
    objective: Objective,
    parameters: Mapping[str, Any],
    batches: Sequence[Batch],
    mismatched: Sequence[Batch] = (),
) -> dict[str, float]:
    """Loss and metrics over all batches, each one sum / count, with a 95 % interval for the accuracy."""
    tallies: Tally = {}
    with torch.no_grad():
        coupled = statistic(model, reference, objective, mismatched)
        for batch in batches:
            losses, weights, found = batch_losses(model, reference, objective, {**parameters, **coupled}, batch)
            add(tallies, {"loss": ((losses * weights).double().sum(), weights.double().sum()), **found})
    result = means(tallies)
    if "rewards/accuracies" in tallies:
        total, count = (float(x) for x in tallies["rewards/accuracies"])
        if count:
            low, high = wilson_interval(total, count)
            result |= {"rewards/accuracies_low": low, "rewards/accuracies_high": high}
    if objective.unit == "token" and "loss" in result:
        result["perplexity"] = math.exp(min(result["loss"], 700.0))
    if coupled:
        result["kl_estimate"] = max(0.0, float(coupled["statistic"]))
    return result


def wilson_interval(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (95 % by default)."""
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


Evaluator = Callable[[int], dict[str, float]]
