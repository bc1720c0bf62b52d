"""Objectives on single responses that are labelled desirable or undesirable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import log_ratios, over_labels
from .registry import POSITIVE, objective

_DECAY = 0.9


def mismatched_kl(policy: Scored, reference: Scored) -> tuple[Tensor, Tensor]:
    """Sum and count of log-ratios of responses that belong to other prompts: KTO's estimate of the KL, in nats."""
    rho = log_ratios(policy, reference)
    return rho.sum(), rho.new_full((), len(rho))


def _kto_at_reference(params: Mapping[str, Any]) -> float | None:
    equal_weights = params["desirable_weight"] == params["undesirable_weight"]
    return 0.5 * params["desirable_weight"] if equal_weights else None


@objective(
    "kto",
    unit="response",
    needs_reference=True,
    at_reference=_kto_at_reference,
    statistic=mismatched_kl,
    bounded="both",
    limits={"desirable_weight": POSITIVE, "undesirable_weight": POSITIVE},
    formula="desirable: lambda_D (1 - sigma(beta (rho - z0))), else lambda_U (1 - sigma(beta (z0 - rho))), "
    "z0 = max(0, mean rho of mismatched rows)",
    paper="Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8 (Kahneman-Tversky optimisation)",
)
def kto(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    statistic: Tensor,
) -> tuple[Tensor, Tensor]:
    """Kahneman-Tversky optimisation: lambda_D (1 - sigma(beta (rho - z0))), lambda_U (1 - sigma(beta (z0 - rho))).

    z0 = max(0, ``statistic``), the mean log-ratio of mismatched rows over the whole update, carries no
    gradient. Responses without a label have weight 0.

    Args:
        beta: larger means stronger loss aversion per nat, and a policy nearer to the reference.
        desirable_weight, undesirable_weight: lambda_D, lambda_U; the paper wants
            lambda_D n_D / (lambda_U n_U) in [1, 3/2].
    """
    rho = log_ratios(policy, reference)
    z0 = statistic.detach().clamp(min=0)
    good = torch.nan_to_num(pairs.desirable, nan=0.0) > 0.5
    sign = torch.where(good, 1.0, -1.0).to(rho.dtype)
    scale = torch.where(good, desirable_weight, undesirable_weight).to(rho.dtype)
    return scale * torch.sigmoid(-beta * sign * (rho - z0)), beta * rho.detach()


def _bco_start(parameters: Mapping[str, Any]) -> dict[str, float]:
    return {"shift": 0.0}


def _next_shift(state: Mapping[str, float], good: Tensor, bad: Tensor) -> dict[str, float]:
    """A moving average of the midpoint between good and bad rewards; unchanged if an update lacks one side."""
    if not (len(good) and len(bad)):
        return dict(state)
    middle = 0.5 * (float(good.mean()) + float(bad.mean()))
    return {"shift": _DECAY * state["shift"] + (1 - _DECAY) * middle}


def _bco_next(
    state: Mapping[str, float], policy: Scored, reference: Scored, pairs: Pairs, *, beta: float
) -> dict[str, float]:
    reward = beta * log_ratios(policy, reference)
    return _next_shift(state, reward[pairs.desirable == 1], reward[pairs.desirable == 0])


def _bco_pair_next(
    state: Mapping[str, float], policy: Scored, reference: Scored, pairs: Pairs, *, beta: float
) -> dict[str, float]:
    reward = beta * log_ratios(policy, reference)
    decided = pairs.p != 0.5
    return _next_shift(state, reward[pairs.yw_idxs[decided]], reward[pairs.yl_idxs[decided]])


@objective(
    "bco",
    unit="response",
    needs_reference=True,
    at_reference=math.log(2),
    initial_state=_bco_start,
    next_state=_bco_next,
    formula="desirable: -log sigma(beta rho - d), else -log sigma(d - beta rho), d = running middle of the rewards",
    paper="Jung et al. 2024, arXiv 2404.04656 (binary classifier optimisation)",
)
def bco(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, state: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """Distinguishes good from bad by the implicit reward alone, ``[B]`` nats; responses without a label have weight 0.

    By hand: beta rho = (2, -1), shift 0.5: -log sigma(1.5) twice = 0.201413.
    """
    reward = beta * log_ratios(policy, reference)
    sign = torch.where(torch.nan_to_num(pairs.desirable, nan=0.0) > 0.5, 1.0, -1.0).to(reward.dtype)
    return -F.logsigmoid(sign * (reward - state["shift"])), reward.detach()


@objective(
    "bco_pair",
    unit="pair",
    needs_reference=True,
    at_reference=2 * math.log(2),
    initial_state=_bco_start,
    next_state=_bco_pair_next,
    formula="-log sigma(beta rho(y_w) - d) - log sigma(d - beta rho(y_l)), d = running middle of the rewards",
    paper="Jung et al. 2024, arXiv 2404.04656, both responses of a pair",
)
def bco_pair(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, state: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """BCO on both responses of a pair, ``[T]`` nats: never below DPO's loss, whatever the shift is.

    By hand: beta rho = (2, -1), shift 0.5: 2 * 0.201413 = 0.402827.
    """
    reward = beta * log_ratios(policy, reference)
    shifted = reward - state["shift"]
    return over_labels(lambda a, b: -F.logsigmoid(shifted[a]) - F.logsigmoid(-shifted[b]), pairs), reward.detach()
