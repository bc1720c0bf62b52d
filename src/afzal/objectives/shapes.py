"""Other shapes of the loss, and other divergences, on the pair of log-ratios; notation as in :mod:`.margins`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, over_labels, safe_exp
from .registry import FRACTION, POSITIVE, objective


@objective(
    "discopop",
    unit="pair",
    needs_reference=True,
    at_reference=0.5 * LN2 + 0.5,
    shift_invariant=True,
    limits={"tau": POSITIVE},
    formula="(1 - m) (-log sigma(u)) + m e^-u, u = beta h, m = sigma(u / tau)",
    paper="Lu et al. 2024, arXiv 2406.08414 (DiscoPOP, log-ratio modulated loss)",
)
def discopop(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Blend of the logistic and the exponential loss, ``[T]``; found by search, and not monotone near u = 0.

    By hand: u = 0 gives 0.5 ln 2 + 0.5 = 0.846574.

    Args:
        tau: width in u of the passage from one loss to the other.
    """
    rho = log_ratios(policy, reference)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        u = beta * (rho[a] - rho[b])
        # m e^-u as one exponential: for u << 0 its factors are 0 and infinite
        return torch.sigmoid(-u / tau) * -F.logsigmoid(u) + safe_exp(F.logsigmoid(u / tau) - u)

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "f_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    limits={"divergence": ("reverse_kl", "forward_kl", "jensen_shannon", "alpha"), "alpha": FRACTION},
    formula="-log sigma(beta (f'(y_w) - f'(y_l))), f' of e^rho: rho, -e^-rho, log(2 e^rho / (1 + e^rho)), "
    "(1 - e^(-alpha rho)) / alpha",
    paper="Wang et al. 2023, arXiv 2309.16240 (f-DPO)",
)
def f_dpo(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.1,
    divergence: str = "jensen_shannon",
    alpha: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """DPO under another divergence from the reference, ``[T]`` nats.

    By hand: rho = (1, -1), beta = 1: forward KL f' = (-0.367879, -2.718282), loss -log sigma(2.350402) = 0.091056.

    Args:
        divergence: ``reverse_kl`` (DPO), ``forward_kl``, ``jensen_shannon`` or ``alpha``.
        alpha: of the alpha divergence, in the paper's convention: 0 is reverse KL, 1 forward KL.
    """
    rho = log_ratios(policy, reference)
    slope = f_prime(rho, divergence, alpha)
    return over_labels(lambda a, b: -F.logsigmoid(beta * (slope[a] - slope[b])), pairs), beta * slope.detach()


def f_prime(rho: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(pi / pi_ref) up to a constant, ``[B]``, from the log-ratios; increasing in them, and f'(1) = 0."""
    if divergence == "forward_kl":
        return 1 - safe_exp(-rho)
    if divergence == "jensen_shannon":
        return LN2 + F.logsigmoid(rho)
    if divergence == "alpha" and alpha > 0:
        return (1 - safe_exp(-alpha * rho)) / alpha
    return rho
