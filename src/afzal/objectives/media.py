"""Objectives designed for images and sounds.

Their additional per-token numbers arrive in ``Scored.extras``: ``piece_log_ratio``, the log-ratio of the same tokens
given only a small piece of the media, and ``changed``, 1 where a response of a pair differs from the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, over_labels
from .registry import POSITIVE, objective


@objective(
    "mdpo",
    unit="pair",
    needs_reference=True,
    at_reference=3 * LN2,
    extras=("piece_log_ratio",),
    formula="-log sigma(beta h) - log sigma(beta (rho(y_w) - rho(y_w | piece))) - log sigma(beta rho(y_w) - delta)",
    paper="Wang et al. 2024, arXiv 2406.11839 (mDPO)",
)
def mdpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, delta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """DPO with a preference for the full medium over a piece of it, and an anchor for y_w: ``[T]`` nats.

    By hand: rho = (1, 0), rho(y_w | piece) = -1, beta = 1, delta = 0 give 0.313262 + 0.126928 + 0.313262 = 0.753452.

    Args:
        delta: the value that the preferred response's implicit reward is kept above.
    """
    rho, piece = log_ratios(policy, reference), policy.total(policy.extras["piece_log_ratio"])

    def loss(a: Tensor, b: Tensor) -> Tensor:
        preferred, conditional = F.logsigmoid(beta * (rho[a] - rho[b])), F.logsigmoid(beta * (rho[a] - piece[a]))
        return -(preferred + conditional + F.logsigmoid(beta * rho[a] - delta))

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "ddpo",
    aliases=("rlhf_v",),
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    length_normalised=True,
    extras=("changed",),
    limits={"gamma": POSITIVE, "reduction": ("mean", "sum")},
    formula="-log sigma(beta (r(y_w) - r(y_l))), r = sum_t g_t rho_t / sum_t g_t, g = gamma where they differ, or 1",
    paper="Yu et al. 2023, arXiv 2312.00849 (RLHF-V, dense DPO)",
)
def ddpo(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.5,
    gamma: float = 5.0,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """DPO whose tokens weigh more where the two responses differ: ``[T]`` nats.

    By hand: y_w of two tokens with rho (1, 0), the first of them changed, y_l with rho 0, beta = 1, gamma = 3 give
    -log sigma(3 / 4) = 0.386871.

    Args:
        gamma: weight of a changed token; 1 weights all tokens equally.
        reduction: ``mean`` divides by the sum of the weights; ``sum`` does not, and with gamma 1 is DPO.
    """
    weight = torch.where(policy.extras["changed"] > 0, gamma, 1.0).to(policy.token_logps.dtype)
    summed = policy.total(weight * (policy.token_logps - reference.token_logps))
    if reduction == "mean":
        total = policy.total(weight)
        summed = summed / torch.where(total > 0, total, 1.0)
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (summed[a] - summed[b])), pairs)
    return losses, beta * summed.detach()
