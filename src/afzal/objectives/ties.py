"""DPO with a preference model that allows ties: a pair with p = 0.5 is a tie, any other is a win with probability p.

d = beta h. The three probabilities sum to 1. ``nu`` may be fixed, or learned as one scalar for all pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import log_ratios
from .registry import Interval, objective

_PAPER = "Chen et al. 2024, arXiv 2409.17431"


def _as_scalar(nu: float | Tensor, like: Tensor) -> Tensor:
    return nu.to(like) if isinstance(nu, Tensor) else torch.tensor(nu, dtype=like.dtype, device=like.device)


def _by_outcome(pairs: Pairs, win: Tensor, loss: Tensor, tie: Tensor) -> Tensor:
    """Negative log-likelihood of the stated outcome, from the log-probabilities of the three outcomes."""
    return -torch.where(pairs.p == 0.5, tie, pairs.p * win + (1 - pairs.p) * loss)


@objective(
    "rao_kupper",
    unit="pair",
    needs_reference=True,
    shift_invariant=True,
    learnable={"nu": 1.0},
    limits={"nu": Interval(1, math.inf, "()")},
    formula="-log P, P(win) = sigma(d - a), P(tie) = (nu^2 - 1) sigma(d - a) sigma(-d - a), a = ln nu, d = beta h",
    paper=f"{_PAPER} (DPO with the ties of Rao and Kupper 1967)",
)
def rao_kupper(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, nu: float | Tensor = 3.0
) -> tuple[Tensor, Tensor]:
    """DPO with ties after Rao and Kupper, ``[T]`` nats; a tie pulls d to 0.

    By hand: d = 0, nu = 3: a win costs -log sigma(-ln 3) = ln 4, a tie ln 2.

    Args:
        nu: > 1; larger means more ties, and 1 means none, which is DPO.
    """
    rho = log_ratios(policy, reference)
    d = beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs])
    ties = _as_scalar(nu, d)
    win, loss = F.logsigmoid(d - ties.log()), F.logsigmoid(-d - ties.log())
    tie = torch.log((ties - 1) * (ties + 1)) + win + loss
    return _by_outcome(pairs, win, loss, tie), beta * rho.detach()


@objective(
    "davidson",
    unit="pair",
    needs_reference=True,
    shift_invariant=True,
    learnable={"nu": 0.0},
    limits={"nu": Interval(0, math.inf, "()")},
    formula="-log P, P(win) = e^(d/2) / Z, P(tie) = 2 nu / Z, Z = e^(d/2) + e^(-d/2) + 2 nu, d = beta h",
    paper=f"{_PAPER} (DPO with the ties of Davidson 1970)",
)
def davidson(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, nu: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """DPO with ties after Davidson, ``[T]`` nats; a tie pulls d to 0.

    By hand: d = 0, nu = 1: a win costs ln 4, a tie ln 2.

    Args:
        nu: > 0; larger means more ties, and 0 means none, which is DPO.
    """
    rho = log_ratios(policy, reference)
    d = beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs])
    log_tie = torch.log(2 * _as_scalar(nu, d)).expand_as(d)
    log_z = torch.logsumexp(torch.stack([d / 2, -d / 2, log_tie]), 0)
    return _by_outcome(pairs, d / 2 - log_z, -d / 2 - log_z, log_tie - log_z), beta * rho.detach()
