"""Functions shared by the objectives on pairs and groups.

With rho(y) = log pi(y|x) - log pi_ref(y|x) in nats per sequence, h = rho(y_w) - rho(y_l): a larger h means the policy
has moved further towards the preferred response than the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored

LN2 = math.log(2)
EXPONENT_LIMIT = 80.0
"""Largest exponent: e^80 is within float32. Beyond it a loss stays constant."""


def log_ratios(policy: Scored, reference: Scored) -> Tensor:
    """rho, ``[B]`` nats: how much likelier each response is than under the reference."""
    return policy.logps - reference.logps


def soft_label(u: Tensor, p: Tensor) -> Tensor:
    """Cross-entropy of the label probability p against sigma(u), ``[T]`` nats; p = 1 gives -log sigma(u)."""
    return -(p * F.logsigmoid(u) + (1 - p) * F.logsigmoid(-u))


def over_labels(loss: Callable[[Tensor, Tensor], Tensor], pairs: Pairs) -> Tensor:
    """The expectation of ``loss(better, worse)`` over the label, ``[T]``: p loss(w, l) + (1 - p) loss(l, w)."""
    w, l = pairs.yw_idxs, pairs.yl_idxs  # noqa: E741 - the field's names for winner and loser
    return pairs.p * loss(w, l) + (1 - pairs.p) * loss(l, w)


def shares(pairs: Pairs) -> Tensor:
    """Each pair's share of the total weight, ``[T]``; equal shares if none has any weight, so that a mean over them
    exists (the loop gives it no weight)."""
    total = pairs.weight.sum()
    weight = torch.where(total == 0, 1.0, pairs.weight)
    return weight / weight.sum()


def safe_exp(x: Tensor) -> Tensor:
    """e^x with the exponent clamped at :data:`EXPONENT_LIMIT`."""
    return x.clamp(max=EXPONENT_LIMIT).exp()


def by_group(values: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Values ``[B]`` as a table ``[G, K]``, and the mask of its places that hold a response with a known score."""
    counts = torch.bincount(pairs.group_of, minlength=pairs.n_groups)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(values), device=values.device) - starts[pairs.group_of]
    shape = (pairs.n_groups, int(counts.max()))
    known = torch.zeros(shape, dtype=torch.bool, device=values.device)
    known[pairs.group_of, place] = ~pairs.score.isnan()
    table = values.new_zeros(shape).index_put((pairs.group_of, place), values)
    return table, known


def masked_log_softmax(values: Tensor, known: Tensor) -> Tensor:
    """Log-softmax over the known places of each row, 0 at the others; rows without any are 0."""
    filled = torch.where(known, values, torch.finfo(values.dtype).min)
    return torch.where(known, filled.log_softmax(-1), 0.0)
