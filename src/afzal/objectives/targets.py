"""Objectives with a finite target, or that treat each response of a pair separately; notation as in :mod:`.margins`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, over_labels
from .registry import Interval, objective


def _ipo(h: Tensor, p: Tensor, tau: float) -> Tensor:
    target = 1 / (2 * tau)
    return p * (h - target) ** 2 + (1 - p) * (h + target) ** 2


@objective(
    "ipo",
    unit="pair",
    needs_reference=True,
    at_reference=lambda params: 1 / (4 * params["beta"] ** 2),
    shift_invariant=True,
    formula="(h - 1 / (2 beta))^2",
    paper="Azar et al. 2023, arXiv 2310.12036, eq. 17 (identity preference optimisation)",
)
def ipo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Identity preference optimisation on summed log-probs, ``[T]`` nats^2; minimal at h = (2p - 1) / (2 beta).

    By hand: h = 1, beta = 0.1 give (1 - 5)^2 = 16.

    Args:
        beta: tau of the paper; larger means a smaller target margin.
    """
    rho = log_ratios(policy, reference)
    return _ipo(rho[pairs.yw_idxs] - rho[pairs.yl_idxs], pairs.p, beta), beta * rho.detach()


@objective(
    "ipo_mean",
    unit="pair",
    needs_reference=True,
    at_reference=lambda params: 1 / (4 * params["beta"] ** 2),
    length_normalised=True,
    formula="(rho(y_w) / len(y_w) - rho(y_l) / len(y_l) - 1 / (2 beta))^2",
    paper="Azar et al. 2023, arXiv 2310.12036, eq. 17, per token (as TRL and others run it)",
)
def ipo_mean(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Identity preference optimisation on log-probs per token, ``[T]`` nats^2.

    By hand: rho = (2, -3) over 4 and 6 tokens, beta = 0.5 give (0.5 + 0.5 - 1)^2 = 0.

    Args:
        beta: tau of the paper, on the scale of one token.
    """
    rho = policy.mean_logps - reference.mean_logps
    return _ipo(rho[pairs.yw_idxs] - rho[pairs.yl_idxs], pairs.p, beta), beta * rho.detach()


def _exo_at_reference(params: Mapping[str, Any]) -> float:
    e = params["label_smoothing"]
    return -LN2 - 0.5 * (math.log(e) + math.log1p(-e))


@objective(
    "exo_pair",
    unit="pair",
    needs_reference=True,
    at_reference=_exo_at_reference,
    shift_invariant=True,
    bounded="both",
    limits={"label_smoothing": Interval(0, 0.5, "()")},
    formula="q log(q / (1 - e)) + (1 - q) log((1 - q) / e), q = sigma(beta h), e = label_smoothing",
    paper="Ji et al. 2024, arXiv 2402.00856 (EXO on pairs)",
)
def exo_pair(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Reverse KL from the policy's preference to the smoothed label, ``[T]`` nats; 0 at beta h = logit(1 - e).

    By hand: h = ln 3, beta = 1, e = 0.25: q = 0.75 = 1 - e, so the loss is 0.

    Args:
        label_smoothing: e, in (0, 0.5): the label's probability is 1 - e; 0 would make the loss infinite.
    """
    rho, e = log_ratios(policy, reference), label_smoothing

    def loss(a: Tensor, b: Tensor) -> Tensor:
        u = beta * (rho[a] - rho[b])
        won = torch.sigmoid(u) * (F.logsigmoid(u) - math.log1p(-e))
        return won + torch.sigmoid(-u) * (F.logsigmoid(-u) - math.log(e))

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "nca_pair",
    unit="pair",
    needs_reference=True,
    at_reference=2 * LN2,
    formula="-log sigma(r_w) - 1/2 log sigma(-r_w) - 1/2 log sigma(-r_l), r = beta rho",
    paper="Chen et al. 2024, arXiv 2402.05369 (noise-contrastive alignment)",
)
def nca_pair(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.01) -> tuple[Tensor, Tensor]:
    """Absolute likelihood of each response against noise, ``[T]`` nats; minimal at beta rho_w = ln 2.

    By hand: r = (ln 2, 0): -log(2/3) - 1/2 log(1/3) - 1/2 log(1/2) = 1.301345.
    """
    rho = log_ratios(policy, reference)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        good, bad = beta * rho[a], beta * rho[b]
        return -F.logsigmoid(good) - 0.5 * F.logsigmoid(-good) - 0.5 * F.logsigmoid(-bad)

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "sppo",
    unit="pair",
    needs_reference=True,
    formula="1/2 [(rho(y_w) - (p - 1/2) / beta)^2 + (rho(y_l) + (p - 1/2) / beta)^2]",
    paper="Wu et al. 2024, arXiv 2405.00675 (self-play preference optimisation)",
)
def sppo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Each log-ratio is regressed on its win probability p, ``[T]`` nats^2; minimal at rho = (p - 1/2) / beta.

    By hand: rho = (1, 0), p = 0.75, beta = 0.5: 1/2 [(1 - 0.5)^2 + 0.5^2] = 0.25.

    Args:
        beta: 1 / eta of the paper; larger targets smaller log-ratios.
    """
    rho = log_ratios(policy, reference)
    target = (pairs.p - 0.5) / beta
    losses = 0.5 * ((rho[pairs.yw_idxs] - target) ** 2 + (rho[pairs.yl_idxs] + target) ** 2)
    return losses, beta * rho.detach()


@objective(
    "sppo_hard",
    unit="pair",
    needs_reference=True,
    at_reference=lambda params: 1 / (2 * params["beta"] ** 2),
    formula="(rho(y_w) - 1 / (2 beta))^2 + (rho(y_l) + 1 / (2 beta))^2",
    paper="Wu et al. 2024, arXiv 2405.00675 with certain labels and without the factor 1/2 (as TRL runs it)",
)
def sppo_hard(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Each log-ratio is regressed on 1 / (2 beta) if it won and the negative if it lost, ``[T]`` nats^2.

    By hand: rho = (1, 0), beta = 0.5: (1 - 1)^2 + (0 + 1)^2 = 1.
    """
    rho, target = log_ratios(policy, reference), 1 / (2 * beta)
    return over_labels(lambda a, b: (rho[a] - target) ** 2 + (rho[b] + target) ** 2, pairs), beta * rho.detach()


@objective(
    "cal_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=lambda params: LN2 + 1 / (4 * params["beta"] ** 2),
    formula="-log sigma(h) + 1/2 [(rho(y_w) - 1 / (2 beta))^2 + (rho(y_l) + 1 / (2 beta))^2]",
    paper="Xiao et al. 2024, arXiv 2412.14516 (calibrated DPO)",
)
def cal_dpo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 1e-3) -> tuple[Tensor, Tensor]:
    """DPO (without beta in the sigmoid) with implicit rewards calibrated to ± 1/2, ``[T]``.

    By hand: rho = (1, 0), beta = 0.5: 0.313262 + 1/2 [0 + 1] = 0.813262.
    """
    rho, target = log_ratios(policy, reference), 1 / (2 * beta)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return -F.logsigmoid(rho[a] - rho[b]) + 0.5 * ((rho[a] - target) ** 2 + (rho[b] + target) ** 2)

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "apo_zero",
    unit="pair",
    needs_reference=True,
    at_reference=1.0,
    bounded="both",
    formula="1 - sigma(beta rho(y_w)) + sigma(beta rho(y_l))",
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266 (anchored preference optimisation, zero)",
)
def apo_zero(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Raises winners and lowers losers, each against the reference, ``[T]`` in (0, 2).

    For winners that are better than the policy's own answers.

    By hand: beta rho = (ln 3, -ln 3): 1 - 0.75 + 0.25 = 0.5.
    """
    rho = log_ratios(policy, reference)
    losses = over_labels(lambda a, b: torch.sigmoid(-beta * rho[a]) + torch.sigmoid(beta * rho[b]), pairs)
    return losses, beta * rho.detach()


@objective(
    "apo_down",
    unit="pair",
    needs_reference=True,
    at_reference=1.0,
    bounded="both",
    formula="sigma(beta rho(y_w)) + 1 - sigma(beta h)",
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266 (anchored preference optimisation, down)",
)
def apo_down(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Lowers winners a little and losers more, ``[T]`` in (0, 2): for a policy that is better than its winners.

    By hand: beta rho = (0, -ln 3): 0.5 + 1 - 0.75 = 0.75.
    """
    rho = log_ratios(policy, reference)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(beta * rho[a]) + torch.sigmoid(-beta * (rho[a] - rho[b]))

    return over_labels(loss, pairs), beta * rho.detach()
