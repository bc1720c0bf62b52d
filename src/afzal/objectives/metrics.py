"""Metrics as (sum, count) over examples, never a mean of means. Names follow TRL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import Pairs, Scored

Tally = dict[str, tuple[Tensor, Tensor]]
_ROUNDING = 1e-6  # share of a log-prob by which two computations of it in float32 may differ


def tally(unit: str, policy: Scored, rewards: Tensor, pairs: Pairs, reference: Scored | None = None) -> Tally:
    """Sums and counts of the shared metrics of one batch, detached, in float64.

    Pairs give rewards, margins, accuracies (ties count one half), log-probs in nats and lengths in tokens of the chosen
    and the rejected side, each pair with its weight, as in the loss; labelled responses give the same for desirable
    and undesirable; tokens give log-probs and lengths of all responses. Pairs at p = 0.5 are ties and enter neither
    side.
    """
    with torch.no_grad():
        logps, lengths = policy.logps.double(), policy.lengths.double()
        rewards = rewards.double()
        if unit == "token":
            all_responses = torch.ones_like(logps, dtype=torch.bool)
            return {"logps/chosen": _sum(logps, all_responses), "lengths/chosen": _sum(lengths, all_responses)}
        known = (logps, lengths, rewards)
        if unit == "response":
            return _sides(known, pairs.desirable == 1, known, pairs.desirable == 0)
        right, weight = correct(rewards, pairs, None if reference is None else unmoved(policy, reference))
        chosen, rejected = ([values[idxs] for values in known] for idxs in (pairs.yw_idxs, pairs.yl_idxs))
        margin = chosen[2] - rejected[2]
        return {
            **_sides(chosen, weight, rejected, weight),
            "rewards/margins": _sum(margin, weight),
            "rewards/accuracies": _sum(right, weight),
        }


def unmoved(policy: Scored, reference: Scored) -> Tensor:
    """``[B]`` bool, whether policy and reference give a response the same log-prob up to rounding.

    A cached reference, and one computed in other batches, differ from an equal policy in the last bits.
    """
    with torch.no_grad():
        logps, start = policy.logps, reference.logps
        return (logps - start).abs() <= _ROUNDING * start.abs()


def correct(rewards: Tensor, pairs: Pairs, still: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``[T]`` float64 each: whether the preferred response has the larger reward (1, 0, or one half if equal), and the
    pair's weight: that in the loss, or 0 for a tie (p = 0.5), where nothing is preferred.

    Args:
        rewards: ``[B]``.
        still: ``[B]`` bool, the responses that are :func:`unmoved`; two of them have equal rewards, whose last bits
            would otherwise rank them.
    """
    margin = rewards[pairs.yw_idxs] - rewards[pairs.yl_idxs]
    equal = margin == 0 if still is None else (margin == 0) | (still[pairs.yw_idxs] & still[pairs.yl_idxs])
    right = torch.where(equal, 0.5, (margin > 0).double())
    return right, torch.where(pairs.p != 0.5, pairs.weight.double(), 0.0)


def add(totals: Tally, new: Tally) -> None:
    """Add ``new`` to ``totals`` in place."""
    for name, (total, count) in new.items():
        old_total, old_count = totals.get(name, (0.0, 0.0))
        totals[name] = (old_total + total, old_count + count)


def means(tallies: Tally) -> dict[str, float]:
    """Sum / count of each metric that has any example."""
    numbers = iter(read([x for pair in tallies.values() for x in pair]))
    totals = {name: (total, count) for name, total, count in zip(tallies, numbers, numbers, strict=True)}
    return {name: total / count for name, (total, count) in totals.items() if count > 0}


def read(values: Sequence[Tensor]) -> list[float]:
    """Scalars as host numbers. All values on a GPU are read together, since each read makes the host wait."""
    on_gpu = [value.detach().double() for value in values if value.device.type != "cpu"]
    host_values = iter(torch.stack(on_gpu).tolist() if on_gpu else [])
    return [float(value.detach()) if value.device.type == "cpu" else next(host_values) for value in values]


def _sides(chosen: Sequence[Tensor], good: Tensor, rejected: Sequence[Tensor], bad: Tensor) -> Tally:
    """Tallies of log-probs, lengths and rewards of both sides, weighted by ``good`` and ``bad``."""
    tallies: Tally = {}
    for name, (logps, lengths, _), counted in (("chosen", chosen, good), ("rejected", rejected, bad)):
        tallies |= {f"logps/{name}": _sum(logps, counted), f"lengths/{name}": _sum(lengths, counted)}
    return tallies | {"rewards/chosen": _sum(chosen[2], good), "rewards/rejected": _sum(rejected[2], bad)}


def _sum(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the values, and the sum of weights (or of 0 and 1). Selecting the values that count would make
    the host wait for a GPU to report how many there are."""
    counted = counted.double()
    return torch.where(counted != 0, values * counted, 0.0).sum(), counted.sum()
