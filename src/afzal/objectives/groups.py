"""Objectives that favour the worst of several tasks or groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, shares
from .registry import NON_NEGATIVE, objective
from .sigmoid import dpo

_MOST = 50.0  # nats between the log-weights of two groups; beyond it a group has no effect anyway


def _start(parameters: Mapping[str, Any]) -> dict[str, float]:
    return {}


def _groups(pairs: Pairs) -> Tensor:
    """The group of every pair, ``[T]``; a single group if none is known."""
    return pairs.task_of[pairs.yw_idxs] if len(pairs.task_of) else torch.zeros_like(pairs.yw_idxs)


def _weighted_groups(pairs: Pairs) -> dict[int, tuple[Tensor, Tensor]]:
    """For every group with any weight in the update: the mask ``[T]`` of its pairs, and its share of the total
    weight."""
    groups, part = _groups(pairs), shares(pairs)
    masks = {int(group): groups == group for group in groups.unique().tolist()}
    return {g: (mask, part[mask].sum()) for g, mask in masks.items() if float(part[mask].sum()) > 0}


def _next(
    state: Mapping[str, float], policy: Scored, reference: Scored, pairs: Pairs, *, beta: float, step: float, **_: Any
) -> dict[str, float]:
    """Exponentiated gradient: a group's log-weight grows with its loss. The largest is kept at 0."""
    grown = dict(state)
    losses = dpo(policy, reference, pairs, beta=beta)[0].detach() * shares(pairs)
    for group, (mask, weight) in _weighted_groups(pairs).items() if float(pairs.weight.sum()) > 0 else ():
        grown[str(group)] = grown.get(str(group), 0.0) + step * float(losses[mask].sum() / weight)
    top = max(grown.values(), default=0.0)
    return {group: max(value - top, -_MOST) for group, value in grown.items()}


@objective(
    "group_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    uses=("p", "weight", "task"),
    couples_batch=True,
    shift_invariant=True,
    initial_state=_start,
    next_state=_next,
    limits={"step": NON_NEGATIVE},
    formula="sum_g alpha_g mean_(i in g) L_i, L = DPO, alpha_g ~ alpha_g exp(step mean_(i in g) L_i) after each update",
    paper="Ramesh et al. 2024, arXiv 2405.20304 (group robust preference optimisation, GR-DPO)",
)
def group_dpo(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.1,
    step: float = 0.01,
    state: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """DPO that weights tasks or groups by their loss, ``[T]`` nats: min over the policy of max over alpha.

    Groups without pairs in an update keep their weights, and those with pairs share its total loss. With one group this
    is DPO; equal losses keep the weights equal.

    By hand: losses 1, 3 of group 0 and 5 of group 1, alpha = (1/2, 1/2): the mean of the three returned values is
    (1 + 3) / 2 / 2 + 5 / 2 = 3.5.

    Args:
        step: of the exponentiated gradient, per update and nat; 0 keeps the weights equal.
    """
    losses, rewards = dpo(policy, reference, pairs, beta=beta)
    groups = _weighted_groups(pairs)
    alpha = {group: math.exp(state.get(str(group), 0.0)) for group in groups}
    scale = torch.zeros_like(losses)
    for group, (mask, weight) in groups.items():
        scale = torch.where(mask, alpha[group] / sum(alpha.values()) / weight, scale)
    return scale * losses, rewards
