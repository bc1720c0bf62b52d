"""Objectives on whole groups: K responses to one prompt, ordered or rated, without being cut into pairs.

A loss belongs to a group (prompt); responses without a score take no part. Notation: s = beta rho, r the score, both
over the K responses of a group.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import by_group, log_ratios, masked_log_softmax
from .registry import POSITIVE, objective


def plackett_luce_nll(values: Tensor, pairs: Pairs) -> Tensor:
    """Negative log-likelihood of each group's order, ``[G]`` nats: -sum_i [v_i - logsumexp over r_j <= r_i of v_j].

    Equal scores: each is compared with all that are not better (Breslow's approximation), so their order plays no part.
    """
    table, known = by_group(values, pairs)
    score, _ = by_group(torch.nan_to_num(pairs.score).to(values.dtype), pairs)
    lowest = torch.finfo(values.dtype).min
    still_there = known[:, None, :] & (score[:, None, :] <= score[:, :, None])  # [G, i, j]
    after = torch.where(still_there, table[:, None, :], lowest).logsumexp(-1)
    return torch.where(known, after - table, 0.0).sum(-1)


@objective(
    "plackett_luce",
    aliases=("pl_dpo",),
    unit="group",
    needs_reference=True,
    shift_invariant=True,
    formula="-sum_k [s_(k) - logsumexp_{j >= k} s_(j)], (1) the best, s = beta rho",
    paper="Rafailov et al. 2023, arXiv 2305.18290, appendix A.3 (DPO under Plackett-Luce)",
)
def plackett_luce(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """DPO on rankings, ``[G]`` nats; at the reference ln K! for K different scores, and DPO at K = 2.

    By hand: s = (1, 0, 0) in order: log(e + 2) - 1 + log 2 = 1.244592.
    """
    reward = beta * log_ratios(policy, reference)
    return plackett_luce_nll(reward, pairs), reward.detach()


def _target(pairs: Pairs, temperature: float, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[G, K]``, log softmax(score / temperature) ``[G, K]`` and the places that are known."""
    table, known = by_group(values, pairs)
    score, _ = by_group(torch.nan_to_num(pairs.score).to(values.dtype), pairs)
    return table, masked_log_softmax(score / temperature, known), known


@objective(
    "exo",
    unit="group",
    needs_reference=True,
    shift_invariant=True,
    limits={"temperature": POSITIVE},
    formula="KL(softmax(s) || softmax(r / temperature)), s = beta rho",
    paper="Ji et al. 2024, arXiv 2402.00856 (EXO on K responses)",
)
def exo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Reverse KL from the policy's choice among K to the scores' choice, ``[G]`` nats; 0 where they agree.

    By hand: s = (ln 3, 0), r = (0, 0): 0.75 ln 1.5 + 0.25 ln 0.5 = 0.130812.

    Args:
        temperature: of the scores (beta_r of the paper); smaller trusts differences of scores more.
    """
    reward = beta * log_ratios(policy, reference)
    table, target, known = _target(pairs, temperature, reward)
    chosen = masked_log_softmax(table, known)
    return (torch.where(known, chosen.exp() * (chosen - target), 0.0)).sum(-1), reward.detach()


@objective(
    "infonca",
    unit="group",
    needs_reference=True,
    shift_invariant=True,
    limits={"temperature": POSITIVE},
    formula="-sum_i softmax(r / temperature)_i log softmax(s)_i, s = beta rho",
    paper="Chen et al. 2024, arXiv 2402.05369 (InfoNCA)",
)
def infonca(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the policy's choice among K under the scores' choice, ``[G]`` nats; at the reference ln K.

    By hand: s = (ln 3, 0), r = (0, 0): -(ln 0.75 + ln 0.25) / 2 = 0.836988.

    Args:
        temperature: of the scores; towards 0 only the best response counts, and K = 2 is DPO.
    """
    reward = beta * log_ratios(policy, reference)
    table, target, known = _target(pairs, temperature, reward)
    return -(torch.where(known, target.exp(), 0.0) * masked_log_softmax(table, known)).sum(-1), reward.detach()


@objective(
    "nca",
    unit="group",
    needs_reference=True,
    at_reference=2 * math.log(2),
    limits={"temperature": POSITIVE},
    formula="-sum_i [softmax(r / temperature)_i log sigma(s_i) + (1 / K) log sigma(-s_i)], s = beta rho",
    paper="Chen et al. 2024, arXiv 2402.05369 (noise-contrastive alignment)",
)
def nca(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Absolute likelihood of each of K responses against noise, ``[G]`` nats.

    By hand: s = (ln 2, 0), r = (0, 0): -1/2 [ln(2/3) + ln(1/2)] - 1/2 [ln(1/3) + ln(1/2)] = 1.445186.

    Args:
        temperature: of the scores; smaller trusts differences of scores more.
    """
    reward = beta * log_ratios(policy, reference)
    table, target, known = _target(pairs, temperature, reward)
    share = known.to(table.dtype) / known.sum(-1, keepdim=True).clamp(min=1)
    each = target.exp() * F.logsigmoid(table) + share * F.logsigmoid(-table)
    return -torch.where(known, each, 0.0).sum(-1), reward.detach()
