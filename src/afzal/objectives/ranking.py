"""Objectives on whole groups: K responses to one prompt, ordered or rated, without splitting into pairs.

A loss belongs to a group (prompt); responses without a score are ignored. Notation: s = beta rho, r the score, both
over the K responses of a group.
"""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import by_group, log_ratios, masked_log_softmax
from .registry import POSITIVE, objective

MOST_EQUAL = 10
"""Largest number of equal scores in a group whose orders are averaged exactly, over 2^n sets."""


def plackett_luce_nll(values: Tensor, pairs: Pairs) -> Tensor:
    """Negative log-likelihood of each group's order, ``[G]`` nats: -sum_i [v_i - logsumexp over r_j <= r_i of v_j].

    Responses with equal scores have no order, so the mean over all their orders is used: two of them cost as much as a
    pair at p = 1/2, and K with equal values and scores cost ln K!. More than :data:`MOST_EQUAL` use Efron's form, which
    is never below that mean and equal to it if the values are equal (Efron 1977, JASA 72).
    """
    table, known = by_group(values, pairs)
    score, _ = by_group(torch.nan_to_num(pairs.score).to(values.dtype), pairs)
    lowest = torch.finfo(values.dtype).min
    worse = known[:, None, :] & (score[:, None, :] < score[:, :, None])  # [G, i, j]
    equal = known[:, None, :] & known[:, :, None] & (score[:, None, :] == score[:, :, None])
    log_remaining = torch.where(worse | equal, table[:, None, :], lowest).logsumexp(-1)
    untied = known & (equal.sum(-1) == 1)
    losses = torch.where(untied, log_remaining - table, 0.0).sum(-1)
    for g, level in _ties(equal):
        rest = torch.where(worse[g, level[0]], table[g], lowest).logsumexp(-1)
        losses = losses.index_add(0, losses.new_tensor([g]).long(), tied_nll(table[g, level], rest)[None])
    return losses


def _ties(equal: Tensor) -> list[tuple[int, list[int]]]:
    """The groups and places of two or more equal scores, from the table ``[G, K, K]`` of equality."""
    first = equal.long().argmax(-1)  # the lowest place of the same score
    rows = (equal.sum(-1) > 1).nonzero().tolist()
    levels: dict[tuple[int, int], list[int]] = {}
    for g, i in rows:
        levels.setdefault((g, int(first[g, i])), []).append(i)
    return [(g, members) for (g, _), members in levels.items()]


def tied_nll(values: Tensor, rest: Tensor) -> Tensor:
    """The cost of d responses with equal scores, a scalar in nats: the mean over their d! orders of
    -sum_k [v_k - log(e^rest + sum of e^v over those at or after k in the order)].

    Args:
        values: ``[d]``.
        rest: scalar, logsumexp of the values of all worse responses.
    """
    d = len(values)
    if d > MOST_EQUAL:
        logs = torch.arange(1, d + 1, dtype=values.dtype, device=values.device).div(d).log()
        return torch.logaddexp(rest, values.logsumexp(0) + logs).sum() - values.sum()
    # after d - k of them, each set of k is left with the same probability, 1 / C(d, k)
    subsets = torch.tensor(list(product((False, True), repeat=d))[1:], device=values.device)
    log_subsets = torch.where(subsets, values, torch.finfo(values.dtype).min).logsumexp(-1)
    share = torch.tensor([1 / math.comb(d, int(k)) for k in subsets.sum(1).tolist()], dtype=values.dtype)
    return (share.to(values.device) * torch.logaddexp(rest, log_subsets)).sum() - values.sum()


@objective(
    "plackett_luce",
    aliases=("pl_dpo",),
    unit="group",
    needs_reference=True,
    shift_invariant=True,
    formula="-sum_k [s_(k) - logsumexp_{j >= k} s_(j)], (1) the best, s = beta rho; the mean over the orders of equal "
    "scores",
    paper="Rafailov et al. 2023, arXiv 2305.18290, appendix A.3 (DPO under Plackett-Luce)",
)
def plackett_luce(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """DPO on rankings, ``[G]`` nats; at the reference ln K! for K different scores, and DPO at K = 2.

    By hand: s = (1, 0, 0) in order: log(e + 2) - 1 + log 2 = 1.244592.
    """
    reward = beta * log_ratios(policy, reference)
    return plackett_luce_nll(reward, pairs), reward.detach()


def _target(pairs: Pairs, temperature: float, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[G, K]``, log softmax(score / temperature) ``[G, K]``, and the mask of known places."""
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
    """Reverse KL from the policy's choice among K to the scores' choice, ``[G]`` nats; 0 if they agree.

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
    terms = target.exp() * F.logsigmoid(table) + share * F.logsigmoid(-table)
    return -torch.where(known, terms, 0.0).sum(-1), reward.detach()
