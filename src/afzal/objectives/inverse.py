"""Losses that infer a reward from demonstrations, against samples of the reference.

The model is p(y | x) = pi_ref(y | x) exp(r(x, y) / beta) / Z(x): demonstrations are answers of the policy that is best
for r while staying near the reference. Samples of the reference represent the base measure, so log Z(x) is estimated by
log mean exp(r / beta) over them, and its gradient by self-normalised importance weights. ``policy.logps`` are the
scores r ``[B]`` of responses. In a group, responses with the best score are demonstrations and the others are samples.

With many samples, all four recover the same reward up to a constant per prompt. They differ in how they use few: see
each one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import by_group, soft_label
from .registry import POSITIVE, objective


@objective(
    "maxent_irl",
    unit="group",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    bounded="none",
    limits={"beta": POSITIVE},
    formula="-mean over demonstrations of r / beta + log mean over samples of exp(r / beta)",
    paper="Ziebart et al. 2008 (maximum entropy IRL); Finn et al. 2016, arXiv 1603.00448, eq. 4, with q = pi_ref",
)
def maxent_irl(policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the demonstrations relative to the reference, ``[G]`` nats; equal rewards give 0.

    The gradient is E_demo[grad r] - sum_k w_k grad r_k, over beta and negated, with w = softmax(r / beta) over the
    samples. A demonstration that is not a sample can be raised without bound. A group without samples costs 0.
    By hand: r = (1, 0, 0), the first a demonstration, beta = 1: -1 + log mean(1, 1) = -1.

    Args:
        beta: strength of the pull to the reference in the demonstrator's objective; rewards are in its units.
    """
    table, known, demonstrated = _table(policy, pairs, beta)
    sampled = known & ~demonstrated
    partition = _log_mean_exp(table, sampled)
    losses = partition - _mean(table, demonstrated)
    return torch.where(sampled.any(-1), losses, 0.0 * losses), policy.logps.detach()


@objective(
    "ranking_nce",
    unit="group",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    limits={"beta": POSITIVE},
    formula="mean over demonstrations d of -log [exp(r_d / beta) / (exp(r_d / beta) + sum over samples of "
    "exp(r / beta))]",
    paper="Ma and Collins 2018, arXiv 1809.01812 (ranking noise-contrastive estimation), with pi_ref as the noise",
)
def ranking_nce(policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of picking the demonstration among the samples, ``[G]`` nats; S equal samples give log(1 + S).

    Bounded below, and consistent at any number of samples, since the demonstration counts in its own partition.
    By hand: r = (1, 0, 0), the first a demonstration, beta = 1: log(e + 2) - 1 = 0.551445.

    Args:
        beta: as for :func:`maxent_irl`.
    """
    table, known, demonstrated = _table(policy, pairs, beta)
    log_others = _log_sum_exp(table, known & ~demonstrated)[:, None]
    losses = torch.logaddexp(table, log_others) - table
    return _mean(losses, demonstrated), policy.logps.detach()


@objective(
    "airl",
    unit="response",
    needs_reference=False,
    scores="reward",
    limits={"beta": POSITIVE},
    formula="demonstration: -log D, sample: -log(1 - D), D = sigma(r / beta)",
    paper="Fu et al. 2018, arXiv 1710.11248 (adversarial IRL): D = sigma(f - log pi), where f = log pi_ref + r / beta "
    "and the samples are of pi = pi_ref",
)
def airl(policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """A discriminator between demonstrations and samples, ``[B]`` nats; r = 0 gives ln 2.

    Its constant per prompt is determined: it absorbs -beta log Z(x) and the numbers of both kinds.
    By hand: r = (1, -1), beta = 1: -log sigma(1) twice = 0.313262.

    Args:
        beta: as for :func:`maxent_irl`.
    """
    sign = torch.where(torch.nan_to_num(pairs.desirable, nan=0.0) > 0.5, 1.0, -1.0).to(policy.logps.dtype)
    return -F.logsigmoid(sign * policy.logps / beta), policy.logps.detach()


@objective(
    "demonstration_pairs",
    unit="pair",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    limits={"beta": POSITIVE},
    formula="-p log sigma((r_w - r_l) / beta) - (1 - p) log sigma((r_l - r_w) / beta), w a demonstration, l a sample",
    paper="Chen et al. 2024, arXiv 2401.01335 (SPIN, one step), with a reward model in place of the log-ratio",
)
def demonstration_pairs(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Demonstration against sample, ``[T]`` nats; equal rewards give ln 2.

    By hand: r = (1, 0), beta = 0.5: -log sigma(2) = 0.126928.

    Args:
        beta: as for :func:`maxent_irl`.
    """
    r = policy.logps / beta
    return soft_label(r[pairs.yw_idxs] - r[pairs.yl_idxs], pairs.p), policy.logps.detach()


def _table(policy: Scored, pairs: Pairs, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """r / beta ``[G, K]``, the mask of known places, and the mask of demonstrations."""
    table, known = by_group(policy.logps / beta, pairs)
    score, _ = by_group(torch.nan_to_num(pairs.score).to(table), pairs)
    score = torch.where(known, score, torch.finfo(table.dtype).min)
    return table, known, known & (score == score.max(-1, keepdim=True).values)


def _log_sum_exp(values: Tensor, where: Tensor) -> Tensor:
    """Log-sum-exp over the masked places of each row; very low, without gradient, if there are none."""
    return torch.where(where, values, torch.finfo(values.dtype).min).logsumexp(-1)


def _log_mean_exp(values: Tensor, where: Tensor) -> Tensor:
    return _log_sum_exp(values, where) - where.sum(-1).clamp(min=1).to(values.dtype).log()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0.0).sum(-1) / where.sum(-1).clamp(min=1).to(values.dtype)
