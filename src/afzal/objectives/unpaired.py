"""Objectives on single responses that are labelled desirable or undesirable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Pairs, Scored
from .preference import log_ratios
from .registry import objective


def mismatched_kl(policy: Scored, reference: Scored) -> tuple[Tensor, Tensor]:
    """Sum and count of log-ratios of responses that belong to other prompts: KTO's estimate of the KL, in nats."""
    rho = log_ratios(policy, reference)
    return rho.sum(), torch.tensor(float(len(rho)), device=rho.device)


def _kto_at_reference(params: Mapping[str, Any]) -> float | None:
    same = params["desirable_weight"] == params["undesirable_weight"]
    return 0.5 * params["desirable_weight"] if same else None


@objective(
    "kto",
    unit="response",
    needs_reference=True,
    at_reference=_kto_at_reference,
    statistic=mismatched_kl,
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

    z0 = max(0, ``statistic``), the mean log-ratio of mismatched rows over the whole update, is a constant to the
    gradient. Responses without a label carry weight 0.

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
