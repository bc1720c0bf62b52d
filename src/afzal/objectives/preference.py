"""Objectives on pairs.

With rho(y) = log pi(y|x) - log pi_ref(y|x) in nats per sequence, h = rho(y_w) - rho(y_l): a larger h means the policy
has moved further towards the preferred response than the reference.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .registry import objective


def log_ratios(policy: Scored, reference: Scored) -> Tensor:
    """rho, ``[B]`` nats: how much likelier than under the reference each response has become."""
    return policy.logps - reference.logps


def _h(policy: Scored, reference: Scored, pairs: Pairs) -> tuple[Tensor, Tensor]:
    rho = log_ratios(policy, reference)
    return rho[pairs.yw_idxs] - rho[pairs.yl_idxs], rho.detach()


def soft_label(u: Tensor, p: Tensor) -> Tensor:
    """Cross-entropy of the label probability p against sigma(u), ``[T]`` nats; p = 1 gives -log sigma(u)."""
    return -(p * F.logsigmoid(u) + (1 - p) * F.logsigmoid(-u))


@objective(
    "dpo",
    unit="pair",
    needs_reference=True,
    at_reference=lambda _: math.log(2),
    paper="Rafailov et al. 2023, arXiv 2305.18290, eq. 7; soft labels as in Mitchell 2023 (cDPO)",
)
def dpo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation: -p log sigma(beta h) - (1 - p) log sigma(-beta h).

    Args:
        beta: strength of the KL constraint; larger keeps the policy nearer to the reference.
    """
    h, rho = _h(policy, reference, pairs)
    return soft_label(beta * h, pairs.p), beta * rho


@objective(
    "ipo",
    unit="pair",
    needs_reference=True,
    at_reference=lambda params: 1 / (4 * params["beta"] ** 2),
    paper="Azar et al. 2023, arXiv 2310.12036, eq. 17 (identity preference optimisation)",
)
def ipo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Identity preference optimisation: (h - 1/(2 tau))^2, with p the expectation over the label.

    Works on summed log-probs as in the paper; the minimum is at the finite margin h = (2p - 1) / (2 tau).

    Args:
        beta: tau of the paper; larger means a smaller target margin.
    """
    h, rho = _h(policy, reference, pairs)
    target = 1 / (2 * beta)
    return pairs.p * (h - target) ** 2 + (1 - pairs.p) * (h + target) ** 2, beta * rho
