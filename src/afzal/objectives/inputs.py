"""What every objective sees: scored responses and the opinions on them.

Shapes: M scored tokens, B responses, T pairs. Log-probs are nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """Per-token log-probs of B responses.

    Attributes:
        token_logps: ``[M]`` float, log-prob of each scored token in nats.
        response_of: ``[M]`` int64, the response each token belongs to.
        n_responses: B.
    """

    token_logps: Tensor
    response_of: Tensor
    n_responses: int

    @property
    def logps(self) -> Tensor:
        """``[B]`` summed log-probs in nats."""
        zeros = self.token_logps.new_zeros(self.n_responses)
        return zeros.index_add(0, self.response_of, self.token_logps)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` scored tokens per response, as float."""
        return torch.bincount(self.response_of, minlength=self.n_responses).to(self.token_logps.dtype)

    @property
    def mean_logps(self) -> Tensor:
        """``[B]`` log-prob per token in nats."""
        return self.logps / self.lengths.clamp(min=1)

    def detach(self) -> Scored:
        return Scored(self.token_logps.detach(), self.response_of, self.n_responses)


@dataclass(frozen=True, slots=True)
class Pairs:
    """T opinions on pairs of B responses, and a label per response.

    Attributes:
        yw_idxs, yl_idxs: ``[T]`` int64, the preferred and the other response.
        p: ``[T]`` float, probability that ``yw`` really is the better one (1 certain, 0.5 tie).
        weight: ``[T]`` float, multiplies the pair's loss and its share of the count.
        margin: ``[T]`` float, stated strength or score gap of ``yw`` over ``yl``; 0 where unknown.
        desirable: ``[B]`` float, 1 good, 0 bad, NaN unknown.
    """

    yw_idxs: Tensor
    yl_idxs: Tensor
    p: Tensor
    weight: Tensor
    margin: Tensor
    desirable: Tensor


def pairs(
    yw_idxs: Tensor,
    yl_idxs: Tensor,
    *,
    p: Tensor | None = None,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    desirable: Tensor | None = None,
) -> Pairs:
    """Pairs with certain labels and unit weights where nothing else is given."""
    ones = torch.ones(yw_idxs.shape, dtype=torch.float32, device=yw_idxs.device)
    return Pairs(
        yw_idxs,
        yl_idxs,
        ones if p is None else p,
        ones if weight is None else weight,
        ones * 0 if margin is None else margin,
        ones.new_zeros(0) if desirable is None else desirable,
    )
