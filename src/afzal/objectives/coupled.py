"""Objectives in which the pairs of an update depend on each other; exact under accumulation, since the loop joins
them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, shares, soft_label
from .registry import LABEL_NOISE, NON_NEGATIVE, POSITIVE, Interval, objective

_DECAY = 0.9


def _sorted_loss(gaps: Tensor, label_smoothing: float) -> Tensor:
    return soft_label(gaps, torch.full_like(gaps, 1 - label_smoothing))


@objective(
    "aot",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    uses=(),
    couples_batch=True,
    shift_invariant=True,
    limits={"label_smoothing": LABEL_NOISE},
    formula="mean_i -log sigma(beta (sort(log pi(y_w) / pi(y_l)) - sort(log ref(y_w) / ref(y_l)))_i)",
    paper="Melnyk et al. 2024, arXiv 2406.05882 (alignment via optimal transport, paired)",
)
def aot(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The policy's margins dominate the reference's as distributions, ``[T]`` nats sorted by size; labels count as
    certain.

    By hand: margins (3, 1) against (0, 2), beta = 1: sorted gaps 1 - 0 and 3 - 2, so 0.313262 twice.

    Args:
        label_smoothing: probability that a label is wrong, in [0, 0.5).
    """
    w, v = pairs.yw_idxs, pairs.yl_idxs
    policy_margins, reference_margins = (scored.logps[w] - scored.logps[v] for scored in (policy, reference))
    gaps = policy_margins.sort().values - reference_margins.sort().values
    return _sorted_loss(beta * gaps, label_smoothing), beta * log_ratios(policy, reference).detach()


@objective(
    "aot_unpaired",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    uses=(),
    couples_batch=True,
    limits={"label_smoothing": LABEL_NOISE},
    formula="mean_i -log sigma(beta (sort(rho(y_w)) - sort(rho(y_l)))_i)",
    paper="Melnyk et al. 2024, arXiv 2406.05882 (alignment via optimal transport, unpaired)",
)
def aot_unpaired(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Log-ratios of winners dominate those of losers as distributions, ``[T]`` nats sorted by size; labels count as
    certain.

    By hand: rho of winners (3, 1), of losers (0, 2), beta = 1: sorted gaps 1 - 0 and 3 - 2, so 0.313262 twice.

    Args:
        label_smoothing: probability that a label is wrong, in [0, 0.5).
    """
    rho = log_ratios(policy, reference)
    gaps = rho[pairs.yw_idxs].sort().values - rho[pairs.yl_idxs].sort().values
    return _sorted_loss(beta * gaps, label_smoothing), beta * rho.detach()


@objective(
    "dr_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    couples_batch=True,
    shift_invariant=True,
    limits={"beta_prime": POSITIVE},
    formula="-beta' log mean_i exp(-L_i / beta'), L = DPO",
    paper="Wu et al. 2024, arXiv 2407.07880 (distributionally robust DPO)",
)
def dr_dpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, beta_prime: float = 1.0
) -> tuple[Tensor, Tensor]:
    """DPO that trusts pairs less the worse they fit, ``[T]`` nats; every pair gets the same soft minimum.

    By hand: L = (0.313262, 1.313262), beta' = 1 give -log((e^-0.313262 + e^-1.313262) / 2) = -log(0.5) = 0.693147.

    Args:
        beta_prime: trust in the labels; infinity is DPO.
    """
    rho = log_ratios(policy, reference)
    losses = soft_label(beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs]), pairs.p)
    log_mean = torch.logsumexp(shares(pairs).log() - losses / beta_prime, 0)
    return (-beta_prime * log_mean).expand(len(losses)), beta * rho.detach()


def _beta_start(parameters: Mapping[str, Any]) -> dict[str, float]:
    return {"mean": 0.0, "std": 1.0, "updates": 0.0}


def _beta_next(
    state: Mapping[str, float], policy: Scored, reference: Scored, pairs: Pairs, **_: Any
) -> dict[str, float]:
    """Moving mean and standard deviation of h, in nats."""
    rho = log_ratios(policy, reference)
    h = rho[pairs.yw_idxs] - rho[pairs.yl_idxs]
    mean = _DECAY * state["mean"] + (1 - _DECAY) * float(h.mean())
    std = _DECAY * state["std"] + (1 - _DECAY) * float(h.std(correction=0))
    return {"mean": mean, "std": std, "updates": state["updates"] + 1}


def _keep(h: Tensor, state: Mapping[str, float], share: float) -> Tensor:
    """1 for the pairs that stay, ``[T]``, drawn without replacement in proportion to N(h; mean, std).

    The noise (Gumbel top-k) depends on the number of updates and on the rank of h, not on the order of the pairs in a
    batch, and a resumed run draws the same.
    """
    n = math.ceil(share * len(h))
    uniform = torch.rand(len(h), generator=torch.Generator().manual_seed(int(state["updates"])), dtype=torch.float64)
    gumbel = -(-uniform.clamp(min=1e-12).log()).log()
    density = -(((h.double() - state["mean"]) / max(state["std"], 1e-6)) ** 2) / 2
    chosen = (density + gumbel.to(h.device)[h.argsort(stable=True).argsort(stable=True)]).topk(n).indices
    return torch.zeros_like(h).index_fill(0, chosen, 1.0)


@objective(
    "beta_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    couples_batch=True,
    shift_invariant=True,
    initial_state=_beta_start,
    next_state=_beta_next,
    limits={"a": NON_NEGATIVE, "rho": Interval(0, 1, "[)")},
    formula="-log sigma(beta_b h) on the pairs kept, beta_b = max(1e-3, beta (1 + a (mean h - M0))); a share "
    "1 - rho is kept, drawn in proportion to N(h; M0, sigma)",
    paper="Wu et al. 2024, arXiv 2407.08639 (beta-DPO)",
)
def beta_dpo(
    policy: Scored,
    reference: Scored,
    pairs: Pairs,
    *,
    beta: float = 0.1,
    a: float = 0.6,
    rho: float = 0.2,
    state: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """DPO with a beta per batch from the mean margin, without outliers, ``[T]`` nats; filtered pairs have loss 0.

    By hand: h = (1, 3), M0 = 1, beta = 0.5, a = 1, rho = 0: beta_b = 0.5 * 2 = 1, losses 0.313262 and 0.048587.

    Args:
        beta: before the adjustment; rewards use it.
        a: how strongly beta follows the batch's mean margin; 0 keeps it fixed.
        rho: share of the pairs that is filtered out, in [0, 1).
    """
    log_ratio = log_ratios(policy, reference)
    h = log_ratio[pairs.yw_idxs] - log_ratio[pairs.yl_idxs]
    fixed = h.detach()
    weight = shares(pairs)
    adjusted = (beta * (1 + a * ((fixed * weight).sum() - state["mean"]))).clamp(min=1e-3)
    kept = _keep(fixed, state, 1 - rho)
    kept_weight = (weight * kept).sum()
    scale = torch.where(kept_weight > 0, 1 / kept_weight, 0.0)  # the kept pairs weigh as much as all pairs did
    return kept * scale * soft_label(adjusted * h, pairs.p), beta * log_ratio.detach()
