"""DPO and its relatives: a function of the implicit-reward margin u = beta h through the logistic sigma.

Every pair loss here is the expectation over the label: with probability 1 - p the two responses are swapped.
Notation: rho and h as in :mod:`.margins`; len(y) scored tokens; NLL(y) = -log pi(y|x).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import LN2, log_ratios, over_labels, soft_label
from .registry import FRACTION, LABEL_NOISE, NON_NEGATIVE, POSITIVE, objective


@objective(
    "dpo",
    aliases=("sigmoid",),
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    formula="-p log sigma(beta h) - (1 - p) log sigma(-beta h)",
    paper="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
)
def dpo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation, with soft labels: ``[T]`` nats, minimal at beta h = logit p.

    By hand: h = 1, beta = 0.1, p = 1 give -log sigma(0.1) = 0.644397.

    Args:
        beta: strength of the KL constraint; larger keeps the policy nearer to the reference.
    """
    rho = log_ratios(policy, reference)
    h = rho[pairs.yw_idxs] - rho[pairs.yl_idxs]
    return soft_label(beta * h, pairs.p), beta * rho.detach()


@objective(
    "cdpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    limits={"label_smoothing": LABEL_NOISE},
    formula="-(1 - e) log sigma(beta h) - e log sigma(-beta h), e = label_smoothing",
    paper="Mitchell 2023, 'A note on DPO with noisy preferences and relationship to IPO'",
)
def cdpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Conservative DPO: labels are wrong with a known probability, ``[T]`` nats; minimal at beta h = logit(1 - e).

    By hand: h = 1, beta = 1, e = 0.1 give 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262.

    Args:
        label_smoothing: e, the probability that a label is wrong, in [0, 0.5); 0 is DPO.
    """
    rho = log_ratios(policy, reference)
    p = pairs.p * (1 - label_smoothing) + (1 - pairs.p) * label_smoothing
    return soft_label(beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs]), p), beta * rho.detach()


@objective(
    "robust",
    aliases=("rdpo",),
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    shift_invariant=True,
    bounded="none",
    limits={"label_smoothing": LABEL_NOISE},
    formula="[-(1 - e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e), e = label_smoothing",
    paper="Chowdhury et al. 2024, arXiv 2403.00409 (robust DPO)",
)
def robust(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Robust DPO: over labels flipped with probability e its mean is DPO's clean loss, ``[T]`` nats.

    Unbounded below (u = 50, e = 0.1 give -6.25), so it needs held-out data and an early stop.
    By hand: h = 1, beta = 1, e = 0.1 give (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.188262.

    Args:
        label_smoothing: e, the probability that a label is wrong, in [0, 0.5); 0 is DPO.
    """
    rho = log_ratios(policy, reference)
    e = label_smoothing

    def loss(a: Tensor, b: Tensor) -> Tensor:
        u = beta * (rho[a] - rho[b])
        return (e * F.logsigmoid(-u) - (1 - e) * F.logsigmoid(u)) / (1 - 2 * e)

    return over_labels(loss, pairs), beta * rho.detach()


@objective(
    "hinge",
    unit="pair",
    needs_reference=True,
    at_reference=1.0,
    shift_invariant=True,
    formula="max(0, 1 - beta h)",
    paper="Liu et al. 2023, arXiv 2309.06657 (RSO, hinge-norm)",
)
def hinge(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.05) -> tuple[Tensor, Tensor]:
    """Hinge on the implicit-reward margin, ``[T]``; no gradient once beta h >= 1.

    By hand: h = 4, beta = 0.05 give 0.8; h = 20 gives 0.

    Args:
        beta: gamma of the paper, the inverse of the margin in nats at which a pair's loss is 0.
    """
    rho = log_ratios(policy, reference)
    losses = over_labels(lambda a, b: F.relu(1 - beta * (rho[a] - rho[b])), pairs)
    return losses, beta * rho.detach()


def _log_gap(gap: Tensor) -> Tensor:
    """log gap if it supports the label; 0 if it is unknown, zero or against the label."""
    return torch.where(gap > 0, gap.clamp(min=torch.finfo(gap.dtype).tiny).log(), 0.0)


@objective(
    "odpo",
    unit="pair",
    needs_reference=True,
    uses=("p", "weight", "margin"),
    shift_invariant=True,
    limits={"alpha": NON_NEGATIVE},
    formula="-log sigma(beta h - alpha log margin); no offset where the margin is unknown or against the label",
    paper="Amini et al. 2024, arXiv 2402.10571 (DPO with an offset)",
)
def odpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """DPO with an offset that grows with the stated margin, ``[T]`` nats; a margin of 0, 1 or below 0 makes it DPO.

    The margin is that of y_w over y_l: for the label that y_l is better it has the other sign, and so no offset.
    By hand: h = 1, beta = 1, margin e^2 = 7.389 give -log sigma(1 - 2) = 1.313262, margin -e^2 0.313262.

    Args:
        alpha: how much more implicit reward a clearer preference requires.
    """
    rho = log_ratios(policy, reference)
    u = beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs])
    right, wrong = (-F.logsigmoid(s * u - alpha * _log_gap(s * pairs.margin)) for s in (1.0, -1.0))
    return pairs.p * right + (1 - pairs.p) * wrong, beta * rho.detach()


@objective(
    "modpo",
    unit="pair",
    needs_reference=True,
    uses=("p", "weight", "margin"),
    shift_invariant=True,
    limits={"w": POSITIVE},
    formula="-log sigma((beta h - margin) / w), margin = the other objectives' weighted reward difference",
    paper="Zhou et al. 2023, arXiv 2310.03708 (multi-objective DPO, eq. 10)",
)
def modpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, w: float = 0.5
) -> tuple[Tensor, Tensor]:
    """DPO on the labels of one objective for the sum of several, ``[T]`` nats; minimal at beta h = w logit p + margin.

    The margin (strength of a row) is sum_j w_j (r_j(y_w) - r_j(y_l)) over the other objectives j, below 0 where they
    prefer y_l; so the optimum is pi_ref exp((w r + sum_j w_j r_j) / beta). Without others it is DPO at beta / w.
    By hand: h = 1, beta = 1, margin 0.5, w = 0.5 give -log sigma(1) = 0.313262; margin 1 gives ln 2 = 0.693147.

    Args:
        w: weight of the objective that the labels belong to; larger follows them more closely.
    """
    rho = log_ratios(policy, reference)
    u = (beta * (rho[pairs.yw_idxs] - rho[pairs.yl_idxs]) - pairs.margin) / w
    return soft_label(u, pairs.p), beta * rho.detach()


@objective(
    "r_dpo",
    unit="pair",
    needs_reference=True,
    shift_invariant=True,
    limits={"alpha": NON_NEGATIVE},
    formula="-log sigma(beta h + alpha (len(y_w) - len(y_l)))",
    paper="Park et al. 2024, arXiv 2403.19159 (length-regularised DPO)",
)
def r_dpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Length-regularised DPO, ``[T]`` nats: a longer winner has less to gain; equal lengths make it DPO.

    By hand: h = 1, beta = 1, lengths 30 and 10, alpha = 0.05 give -log sigma(2) = 0.126928.

    Args:
        alpha: implicit reward granted per token that the winner is longer.
    """
    rho, n = log_ratios(policy, reference), policy.lengths
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b]) + alpha * (n[a] - n[b])), pairs)
    return losses, beta * rho.detach()


@objective(
    "ln_dpo",
    aliases=("sigmoid_norm",),
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    length_normalised=True,
    formula="-log sigma(beta (rho(y_w) / len(y_w) - rho(y_l) / len(y_l)))",
    paper="Lambert et al. 2024, arXiv 2411.15124 (Tulu 3, length-normalised DPO)",
)
def ln_dpo(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 5.0) -> tuple[Tensor, Tensor]:
    """Length-normalised DPO, ``[T]`` nats.

    By hand: rho = (2, -3) over 4 and 6 tokens, beta = 1 give -log sigma(0.5 + 0.5) = 0.313262.

    Args:
        beta: acts on log-ratios per token, so it is larger than DPO's by a factor of about the response length.
    """
    rho = policy.mean_logps - reference.mean_logps
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b])), pairs)
    return losses, beta * rho.detach()


@objective(
    "ld_dpo",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    limits={"alpha": FRACTION},
    formula="-log sigma(beta h) on lp(y) = sum_{t <= m} lp_t + alpha sum_{t > m} lp_t, m the shorter length",
    paper="Liu et al. 2024, arXiv 2409.06411 (length-desensitised DPO)",
)
def ld_dpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Length-desensitised DPO, ``[T]`` nats: tokens beyond the other response's length count ``alpha``, on both models.

    By hand: token log-ratios (1, 1, 4) and (0), alpha = 0.5, beta = 1: m = 1, h = 1 + 0.5 * 5 - 0 = 3.5, loss 0.029750.

    Args:
        alpha: weight of the tokens beyond the shorter length, in [0, 1]; 1 is DPO.
    """
    ratios = Scored(policy.token_logps - reference.token_logps, policy.response_of, policy.n_responses)
    rho, n = ratios.logps, policy.lengths
    shorter = torch.minimum(n[pairs.yw_idxs], n[pairs.yl_idxs])
    w, v = (alpha * rho[i] + (1 - alpha) * _head_sums(ratios, i, shorter) for i in (pairs.yw_idxs, pairs.yl_idxs))
    return soft_label(beta * (w - v), pairs.p), beta * rho.detach()


def _head_sums(scored: Scored, responses: Tensor, length: Tensor) -> Tensor:
    """The sums of the first ``length`` ``[T]`` tokens of the responses ``responses`` ``[T]``."""
    place = scored.place
    table = scored.token_logps.new_zeros(scored.n_responses, int(place.max()) + 1)
    rows = table.index_put((scored.response_of, place), scored.token_logps)[responses]
    within_length = torch.arange(rows.shape[1], device=rows.device)[None] < length[:, None]
    return torch.where(within_length, rows, 0.0).sum(1)


@objective(
    "dpop",
    unit="pair",
    needs_reference=True,
    at_reference=LN2,
    limits={"penalty": NON_NEGATIVE},
    formula="-log sigma(beta (h - penalty max(0, -rho(y_w))))",
    paper="Pal et al. 2024, arXiv 2402.13228 (DPO-positive, Smaug)",
)
def dpop(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.3, penalty: float = 50.0
) -> tuple[Tensor, Tensor]:
    """DPO that punishes a winner for becoming less likely than under the reference, ``[T]`` nats.

    By hand: rho = (-0.1, -1.1), beta = 1, penalty = 5 give h = 1 - 0.5, loss -log sigma(0.5) = 0.474077.

    Args:
        penalty: lambda of the paper; 0 is DPO, and so is a winner that did not fall.
    """
    rho = log_ratios(policy, reference)
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b] - penalty * F.relu(-rho[a]))), pairs)
    return losses, beta * rho.detach()


@objective(
    "rpo",
    unit="pair",
    needs_reference=True,
    limits={"eta": NON_NEGATIVE},
    formula="-log sigma(beta h) + eta NLL(y_w) / len(y_w)",
    paper="Pang et al. 2024, arXiv 2404.19733 (iterative RPO: DPO with a likelihood term per token)",
)
def rpo(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """DPO that also raises the winner's likelihood per token, ``[T]`` nats.

    By hand: h = 1, beta = 1, winner of 4 tokens at -8 nats, eta = 0.5 give 0.313262 + 0.5 * 2 = 1.313262.

    Args:
        eta: weight of the likelihood term (alpha of the paper); 0 is DPO.
    """
    rho, mean = log_ratios(policy, reference), policy.mean_logps
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b])) - eta * mean[a], pairs)
    return losses, beta * rho.detach()


@objective(
    "rpo_sum",
    unit="pair",
    needs_reference=True,
    limits={"eta": NON_NEGATIVE},
    formula="-log sigma(beta h) + eta NLL(y_w)",
    paper="Liu et al. 2024, arXiv 2405.16436 (RPO: DPO with a likelihood term per sequence)",
)
def rpo_sum(
    policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.1, eta: float = 0.005
) -> tuple[Tensor, Tensor]:
    """DPO that also raises the winner's likelihood per sequence, ``[T]`` nats.

    By hand: h = 1, beta = 1, winner at -8 nats, eta = 0.5 give 0.313262 + 0.5 * 8 = 4.313262.

    Args:
        eta: weight of the likelihood term; 0 is DPO.
    """
    rho, logps = log_ratios(policy, reference), policy.logps
    losses = over_labels(lambda a, b: -F.logsigmoid(beta * (rho[a] - rho[b])) - eta * logps[a], pairs)
    return losses, beta * rho.detach()
