"""Losses of reward models. They take the same inputs, but ``policy.logps`` are the scores r ``[B]`` of responses.

A reward is determined up to a constant per prompt; ``centering`` chooses the one with mean 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import by_group, masked_log_softmax, over_labels, soft_label
from .ranking import plackett_luce_nll
from .registry import NON_NEGATIVE, objective


@objective(
    "bradley_terry",
    unit="pair",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    limits={"centering": NON_NEGATIVE},
    formula="-p log sigma(r_w - r_l) - (1 - p) log sigma(r_l - r_w) + centering (r_w + r_l)^2",
    paper="Bradley and Terry 1952; centering of Eisenstein et al. 2023, arXiv 2312.09244",
)
def bradley_terry(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, centering: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Bradley-Terry likelihood of pairs, ``[T]`` nats; equal scores give ln 2.

    By hand: r = (1, 0), centering = 0.01: 0.313262 + 0.01 = 0.323262.

    Args:
        centering: weight of the squared sum; 0 leaves each prompt's constant free, 0.01 pulls the mean score to 0.
    """
    r = policy.logps
    losses = over_labels(lambda a, b: -F.logsigmoid(r[a] - r[b]) + centering * (r[a] + r[b]) ** 2, pairs)
    return losses, r.detach()


@objective(
    "bradley_terry_margin",
    unit="pair",
    needs_reference=False,
    scores="reward",
    uses=("p", "weight", "margin"),
    shift_invariant=True,
    limits={"centering": NON_NEGATIVE},
    formula="-p log sigma(r_w - r_l - margin) - (1 - p) log sigma(r_l - r_w + margin) + centering (r_w + r_l)^2",
    paper="Touvron et al. 2023, arXiv 2307.09288 (Llama 2: margin from the rated strength)",
)
def bradley_terry_margin(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, centering: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Bradley-Terry with a stated margin per pair, ``[T]`` nats; a margin of 0 gives Bradley-Terry.

    The margin is that of y_w over y_l, so a margin against the label requires less; minimal at
    r_w - r_l = logit p + margin.
    By hand: r = (1, 0), margin 1: -log sigma(0) = 0.693147; margin -1: -log sigma(2) = 0.126928.
    """
    r = policy.logps
    w, v = r[pairs.yw_idxs], r[pairs.yl_idxs]
    return soft_label(w - v - pairs.margin, pairs.p) + centering * (w + v) ** 2, r.detach()


@objective(
    "plackett_luce_reward",
    unit="group",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    formula="-sum_k [r_(k) - logsumexp_{j >= k} r_(j)], (1) the best; the mean over the orders of equal scores",
    paper="Plackett 1975; Luce 1959",
)
def plackett_luce_reward(policy: Scored, reference: Scored | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Plackett-Luce likelihood of each ranking, ``[G]`` nats; at equal rewards ln K!, and K = 2 is Bradley-Terry.

    By hand: r = (1, 0, 0) in order: 1.244592.
    """
    return plackett_luce_nll(policy.logps, pairs), policy.logps.detach()


@objective(
    "top1",
    unit="group",
    needs_reference=False,
    scores="reward",
    shift_invariant=True,
    formula="-log softmax(r)_best",
    paper="McFadden 1974 (conditional logit): the first factor of Plackett-Luce",
)
def top1(policy: Scored, reference: Scored | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the best of K, ``[G]`` nats; responses that share the best score share the target.

    By hand: r = (1, 0, 0), the first is best: log(e + 2) - 1 = 0.551445.
    """
    table, known = by_group(policy.logps, pairs)
    score, _ = by_group(torch.nan_to_num(pairs.score).to(table), pairs)
    score = torch.where(known, score, torch.finfo(table.dtype).min)
    best = (known & (score == score.max(-1, keepdim=True).values)).to(table.dtype)
    share = best / best.sum(-1, keepdim=True).clamp(min=1)
    return -(share * masked_log_softmax(table, known)).sum(-1), policy.logps.detach()
