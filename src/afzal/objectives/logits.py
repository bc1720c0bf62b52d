"""Objectives that use the full next-token distribution, not only the target's probability.

Their per-token statistics are computed with the log-probs (:mod:`.statistics`) and arrive in ``Scored.extras``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, over_labels, shares, soft_label
from .registry import Interval, objective
from .statistics import kl_ref_policy, log_sum_p2, logp_away, logp_towards


@objective(
    "wpo",
    unit="pair",
    needs_reference=True,
    statistics=(log_sum_p2,),
    formula="min(1, w(y_w) w(y_l)) (-log sigma(beta h)), w(y) = exp(mean_t [lp_t - log sum_v p_v^2])",
    paper="Zhou et al. 2024, arXiv 2406.11827 (weighted preference optimisation)",
)
def wpo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01) -> tuple[Tensor, Tensor]:
    """DPO with pairs weighted by how likely the policy itself would write them, ``[T]`` nats; weights are constants.

    By hand: uniform next-token distributions give w = 1, and the loss is DPO's.
    """
    rho = log_ratios(policy, reference)
    surprise = policy.total(policy.token_logps.detach() - policy.extras["log_sum_p2"])
    log_weight = surprise / policy.lengths.clamp(min=1)
    weight = (log_weight[pairs.yw_idxs] + log_weight[pairs.yl_idxs]).clamp(max=0).exp()
    h = rho[pairs.yw_idxs] - rho[pairs.yl_idxs]
    return weight * soft_label(beta * h, pairs.p), beta * rho.detach()


@objective(
    "tdpo1",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    statistics=(kl_ref_policy,),
    formula="-log sigma(beta (h - (S(y_l) - S(y_w)))), S = sum_t KL(ref || pi)",
    paper="Zeng et al. 2024, arXiv 2404.11999 (token-level DPO, first form)",
)
def tdpo1(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Token-level DPO with the forward KL along both responses, ``[T]`` nats.

    By hand: h = 1, S = (0.5, 0.75), beta = 1 give -log sigma(1 - 0.25) = 0.386871.
    """
    rho, s = log_ratios(policy, reference), policy.total(policy.extras["kl_ref_policy"])
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b] - (s[b] - s[a]))), pairs)
    return losses, beta * rho.detach()


@objective(
    "tdpo2",
    aliases=("tdpo",),
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    statistics=(kl_ref_policy,),
    formula="-log sigma(beta (h - alpha (S(y_l) - sg S(y_w)))), S = sum_t KL(ref || pi), sg = constant",
    paper="Zeng et al. 2024, arXiv 2404.11999 (token-level DPO, second form)",
)
def tdpo2(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Token-level DPO whose KL term moves the loser only, ``[T]`` nats.

    By hand: h = 1, S = (0.5, 0.75), beta = 1, alpha = 0.5 give -log sigma(1 - 0.125) = 0.348445.

    Args:
        alpha: weight of the KL difference; 0 is DPO.
    """
    rho, s = log_ratios(policy, reference), policy.total(policy.extras["kl_ref_policy"])
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b] - alpha * (s[b] - s[a].detach()))), pairs)
    return losses, beta * rho.detach()


def _directions(policy: Scored, w: Tensor, v: Tensor) -> Tensor:
    """Per pair, +1 if the log-ratio of the two rises with every step away from the reference, -1 if it falls, else
    0."""
    logps_away, logps_towards = (policy.total(policy.extras[name]) for name in ("logp_away", "logp_towards"))
    logps = policy.logps.detach()
    gap_towards, gap, gap_away = logps_towards[w] - logps_towards[v], logps[w] - logps[v], logps_away[w] - logps_away[v]
    return ((gap_away > gap) & (gap > gap_towards)).to(gap.dtype) - ((gap_away < gap) & (gap < gap_towards)).to(
        gap.dtype
    )


def _epsilon_start(parameters: Mapping[str, Any]) -> dict[str, float]:
    return {"beta": parameters["beta"]}


def _epsilon_next(
    state: Mapping[str, float], policy: Scored, reference: Scored, pairs: Pairs, *, beta: float, epsilon: float
) -> dict[str, float]:
    """beta / (1 + epsilon mean s): smaller if more pairs would gain from leaving the reference."""
    directions = _directions(policy, pairs.yw_idxs, pairs.yl_idxs)
    mean = float((directions * shares(pairs)).sum()) if bool(pairs.weight.any()) else 0.0
    return {"beta": state["beta"] / (1 + epsilon * mean)}


@objective(
    "epsilon_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    statistics=(logp_away, logp_towards),
    initial_state=_epsilon_start,
    next_state=_epsilon_next,
    limits={"epsilon": Interval(0, 1, "[)")},
    formula="-log sigma(beta_i h), beta_i = beta / (1 + e s_i), s_i = +1, -1 or 0 as the log-ratio at the logits "
    "(1 ± e) z ∓ e z_ref rises, falls or neither",
    paper="Lee et al. 2025, arXiv 2502.13177 (epsilon-DPO)",
)
def epsilon_dpo(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.01,
    epsilon: float = 0.01,
    state: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """DPO whose KL strength is adjusted pair by pair from small steps along the logits, ``[T]`` nats.

    By hand: h = 1, running beta 1, s = +1, epsilon = 0.25 give -log sigma(0.8) = 0.371101.

    Args:
        beta: initial value of the running beta, which each update divides by 1 + epsilon mean(s).
        epsilon: size of the step; 0 is DPO.
    """
    rho = log_ratios(policy, reference)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return -F.logsigmoid(state["beta"] / (1 + epsilon * _directions(policy, a, b)) * (rho[a] - rho[b]))

    return over_labels(loss, pairs), state["beta"] * rho.detach()
