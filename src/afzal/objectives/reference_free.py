"""Objectives on pairs without a reference: only their own terms keep the policy near its start.

Notation: lp(y) = log pi(y|x) in nats, mean_lp(y) = lp(y) / len(y).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import over_labels, safe_exp
from .registry import NON_NEGATIVE, objective

_LOG_HALF = -math.log(2)
_NEVER_CERTAIN = -1e-6
"""Largest log-prob in log(1 - p); larger ones are clamped, since a probability of 1 leaves nothing."""


@objective(
    "slic",
    unit="pair",
    needs_reference=False,
    limits={"delta": NON_NEGATIVE, "lam": NON_NEGATIVE},
    formula="max(0, delta - lp(y_w) + lp(y_l)) - lam lp(y_w)",
    paper="Zhao et al. 2023, arXiv 2305.10425 (SLiC-HF, with the winner as regularisation target)",
)
def slic(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, delta: float = 1.0, lam: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Sequence likelihood calibration, ``[T]`` nats.

    By hand: lp = (-2, -2.5), delta = 1, lam = 0.1: 0.5 + 0.2 = 0.7.

    Args:
        delta: margin in nats at which the pair's hinge loss is 0.
        lam: weight of the winner's negative log-likelihood.
    """
    lp = policy.logps
    return over_labels(lambda a, b: F.relu(delta - lp[a] + lp[b]) - lam * lp[a], pairs), lp.detach()


def log_complement(logp: Tensor) -> Tensor:
    """log(1 - p) in nats for p = e^logp, without cancellation; p is clamped at 1 - 1e-6."""
    x = logp.clamp(max=_NEVER_CERTAIN)
    small = x > _LOG_HALF
    near_one = torch.log(-torch.expm1(torch.where(small, x, _LOG_HALF)))
    near_zero = torch.log1p(-torch.exp(torch.where(small, _LOG_HALF, x)))
    return torch.where(small, near_one, near_zero)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = e^mean_logp, without cancellation; p is clamped at 1 - 1e-6."""
    return mean_logp.clamp(max=_NEVER_CERTAIN) - log_complement(mean_logp)


@objective(
    "unlikelihood",
    unit="pair",
    needs_reference=False,
    limits={"alpha": NON_NEGATIVE},
    formula="-lp(y_w) - alpha sum_t log(1 - pi(y_l,t | x, y_l,<t))",
    paper="Welleck et al. 2020, arXiv 1908.04319; as a baseline in Rafailov et al. 2023, arXiv 2305.18290",
)
def unlikelihood(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Likelihood of the winner and unlikelihood of every token of the loser, ``[T]`` nats.

    By hand: lp(y_w) = -1, y_l of two tokens of probability 1/2, alpha = 0.5: 1 + 0.5 * 2 * 0.693147 = 1.693147.

    Args:
        alpha: weight of the unlikelihood, in [0, 1] in the DPO paper; 0 is the winner's likelihood alone.
    """
    lp, loser_nll = policy.logps, -policy.total(log_complement(policy.token_logps))
    return over_labels(lambda a, b: alpha * loser_nll[b] - lp[a], pairs), lp.detach()


@objective(
    "orpo",
    unit="pair",
    needs_reference=False,
    length_normalised=True,
    limits={"lam": NON_NEGATIVE},
    formula="-mean_lp(y_w) - lam log sigma(log_odds(y_w) - log_odds(y_l)), odds = q / (1 - q), q = e^mean_lp",
    paper="Hong et al. 2024, arXiv 2403.07691 (odds-ratio preference optimisation)",
)
def orpo(policy: Scored, reference: Scored | None, pairs: Pairs, *, lam: float = 0.1) -> tuple[Tensor, Tensor]:
    """Likelihood of the winner and odds against the loser, ``[T]`` nats.

    By hand: mean_lp = (ln 0.5, ln 0.25), lam = 1: 0.693147 - log sigma(0 - ln(1/3)) = 0.693147 + 0.287682.

    Args:
        lam: weight of the odds-ratio term.
    """
    mean, odds = policy.mean_logps, log_odds(policy.mean_logps)
    losses = over_labels(lambda a, b: -mean[a] - lam * F.logsigmoid(odds[a] - odds[b]), pairs)
    return losses, lam * mean.detach()


@objective(
    "simpo",
    unit="pair",
    needs_reference=False,
    length_normalised=True,
    formula="-log sigma(beta (mean_lp(y_w) - mean_lp(y_l)) - gamma)",
    paper="Meng et al. 2024, arXiv 2405.14734 (simple preference optimisation)",
)
def simpo(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean log-probs with a target margin, ``[T]`` nats.

    By hand: mean_lp = (-1, -1.5), beta = 2, gamma = 1: -log sigma(0) = 0.693147.

    Args:
        beta: scale of a nat per token.
        gamma: target margin, in units of the reward beta mean_lp.
    """
    reward = beta * policy.mean_logps
    return over_labels(lambda a, b: -F.logsigmoid(reward[a] - reward[b] - gamma), pairs), reward.detach()


@objective(
    "cpo",
    unit="pair",
    needs_reference=False,
    limits={"alpha": NON_NEGATIVE},
    formula="-log sigma(beta (lp(y_w) - lp(y_l))) - alpha lp(y_w)",
    paper="Xu et al. 2024, arXiv 2401.08417 (contrastive preference optimisation)",
)
def cpo(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """DPO against a uniform reference, with the winner's likelihood, ``[T]`` nats.

    By hand: lp = (-1, -2), beta = 1, alpha = 0.5: 0.313262 + 0.5 = 0.813262.

    Args:
        alpha: weight of the winner's negative log-likelihood per sequence.
    """
    lp = policy.logps
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (lp[a] - lp[b])) - alpha * lp[a], pairs)
    return losses, beta * lp.detach()


@objective(
    "alphapo",
    unit="pair",
    needs_reference=False,
    length_normalised=True,
    formula="-log sigma(beta (r(y_w) - r(y_l)) - gamma), r = (1 - e^(-alpha mean_lp)) / alpha",
    paper="Gupta et al. 2025, arXiv 2501.03884 (AlphaPO)",
)
def alphapo(
    policy: Scored,
    reference: Scored | None,
    pairs: Pairs,
    *,
    beta: float = 2.5,
    gamma: float = 0.25,
    alpha: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """SimPO with another shape of the reward, ``[T]`` nats.

    By hand: mean_lp = (0, -ln 2), alpha = 1, beta = 1, gamma = 0: r = (0, -1), loss 0.313262.

    Args:
        alpha: curvature of the reward; 0 is SimPO.
        gamma: target margin, in units of beta r.
    """
    mean = policy.mean_logps
    reward = beta * ((1 - safe_exp(-alpha * mean)) / alpha if alpha else mean)
    return over_labels(lambda a, b: -F.logsigmoid(reward[a] - reward[b] - gamma), pairs), reward.detach()
