"""Metrics as (sum, count) over examples, never a mean of means. Names are those the field knows from TRL."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Pairs, Scored

Tally = dict[str, tuple[Tensor, Tensor]]


def tally(unit: str, policy: Scored, rewards: Tensor, pairs: Pairs) -> Tally:
    """Sums and counts of the shared metrics of one batch, detached, in float64.

    Pairs give rewards, margins, accuracies (ties count one half), log-probs in nats and lengths in tokens of the chosen
    and the rejected side; labelled responses give the same for desirable and undesirable; tokens give log-probs and
    lengths of all responses. Pairs at p = 0.5 are ties and enter neither side.
    """
    with torch.no_grad():
        logps, lengths = policy.logps.double(), policy.lengths.double()
        rewards = rewards.double()
        if unit == "token":
            everything = torch.arange(policy.n_responses, device=logps.device)
            return _side("chosen", everything, logps, lengths)
        if unit == "response":
            good = (pairs.desirable == 1).nonzero().flatten()
            bad = (pairs.desirable == 0).nonzero().flatten()
            return {**_sides(good, bad, rewards, logps, lengths)}
        decided = pairs.p != 0.5
        chosen, rejected = pairs.yw_idxs[decided], pairs.yl_idxs[decided]
        margin = rewards[chosen] - rewards[rejected]
        right = (margin > 0).double() + 0.5 * (margin == 0).double()
        return {
            **_sides(chosen, rejected, rewards, logps, lengths),
            "rewards/margins": _sum(margin),
            "rewards/accuracies": _sum(right),
        }


def add(into: Tally, new: Tally) -> None:
    """Add ``new`` to ``into`` in place."""
    for name, (total, count) in new.items():
        old_total, old_count = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_count + count)


def means(tallies: Tally) -> dict[str, float]:
    """Sum / count of each metric that has any example."""
    return {name: float(total) / float(count) for name, (total, count) in tallies.items() if float(count) > 0}


def _sum(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.sum(), torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)


def _side(name: str, idxs: Tensor, logps: Tensor, lengths: Tensor) -> Tally:
    return {f"logps/{name}": _sum(logps[idxs]), f"lengths/{name}": _sum(lengths[idxs])}


def _sides(good: Tensor, bad: Tensor, rewards: Tensor, logps: Tensor, lengths: Tensor) -> Tally:
    found = {**_side("chosen", good, logps, lengths), **_side("rejected", bad, logps, lengths)}
    return {**found, "rewards/chosen": _sum(rewards[good]), "rewards/rejected": _sum(rewards[bad])}
