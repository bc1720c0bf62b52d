"""Inputs of every objective: scored responses and the opinions on them.

Shapes: M scored tokens, B responses, T pairs, G groups (prompts). Log-probs are nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """Per-token log-probs of B responses.

    Attributes:
        token_logps: ``[M]`` float, log-prob of each scored token in nats.
        response_of: ``[M]`` int64 ascending, the response each token belongs to.
        n_responses: B.
        extras: ``[M]`` float each, other per-token statistics by name, for objectives that declare them.
    """

    token_logps: Tensor
    response_of: Tensor
    n_responses: int
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self, values: Tensor) -> Tensor:
        """``[B]`` sums of a per-token value ``[M]``."""
        return values.new_zeros(self.n_responses).index_add(0, self.response_of, values)

    @property
    def logps(self) -> Tensor:
        """``[B]`` summed log-probs in nats."""
        return self.total(self.token_logps)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` scored tokens per response, as float."""
        return self._counts.to(self.token_logps.dtype)

    @property
    def mean_logps(self) -> Tensor:
        """``[B]`` log-prob per token in nats."""
        return self.logps / self.lengths.clamp(min=1)

    @property
    def place(self) -> Tensor:
        """``[M]`` int64, index of each scored token within its response, from 0."""
        counts = self._counts
        starts = counts.cumsum(0) - counts
        return torch.arange(len(self.response_of), device=counts.device) - starts[self.response_of]

    @property
    def _counts(self) -> Tensor:
        """``[B]`` int64 scored tokens per response; bincount would make a GPU's host wait for the largest index."""
        none = self.response_of.new_zeros(self.n_responses)
        return none.index_add(0, self.response_of, torch.ones_like(self.response_of))

    def detach(self) -> Scored:
        """The same numbers as constants."""
        extras = {name: value.detach() for name, value in self.extras.items()}
        return replace(self, token_logps=self.token_logps.detach(), extras=extras)


def _none() -> Tensor:
    return torch.zeros(0)


@dataclass(frozen=True, slots=True)
class Pairs:
    """T opinions on pairs of B responses, and labels and scores of single responses.

    Attributes:
        yw_idxs, yl_idxs: ``[T]`` int64, the preferred and the other response.
        p: ``[T]`` float, probability that ``yw`` really is the better one (1 certain, 0.5 tie).
        weight: ``[T]`` float, multiplies the pair's loss and is its weight in a mean loss.
        margin: ``[T]`` float, stated strength or score gap of ``yw`` over ``yl``; 0 if unknown.
        desirable: ``[B]`` float, 1 good, 0 bad, NaN unknown.
        group_of: ``[B]`` int64 ascending, which prompt (of G) a response answers.
        score: ``[B]`` float, rating of a response, or minus its rank; larger is better; NaN unknown.
        task_of: ``[B]`` int64, number of the task or group that a response's item belongs to.
    """

    yw_idxs: Tensor
    yl_idxs: Tensor
    p: Tensor
    weight: Tensor
    margin: Tensor
    desirable: Tensor
    group_of: Tensor = field(default_factory=_none)
    score: Tensor = field(default_factory=_none)
    task_of: Tensor = field(default_factory=_none)

    @property
    def n_groups(self) -> int:
        """Number of groups, G."""
        return int(self.group_of[-1]) + 1 if len(self.group_of) else 0


def pairs(
    yw_idxs: Tensor,
    yl_idxs: Tensor,
    *,
    p: Tensor | None = None,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    desirable: Tensor | None = None,
    group_of: Tensor | None = None,
    score: Tensor | None = None,
    task_of: Tensor | None = None,
) -> Pairs:
    """Pairs with certain labels and unit weights by default."""
    ones = torch.ones(yw_idxs.shape, dtype=torch.float32, device=yw_idxs.device)
    none = ones.new_zeros(0)
    return Pairs(
        yw_idxs,
        yl_idxs,
        ones if p is None else p,
        ones if weight is None else weight,
        ones * 0 if margin is None else margin,
        none if desirable is None else desirable,
        none.long() if group_of is None else group_of,
        none if score is None else score,
        none.long() if task_of is None else task_of,
    )


def join_scored(parts: Sequence[Scored]) -> Scored:
    """Several micro-batches as one; responses are numbered consecutively over all of them."""
    starts = _starts([part.n_responses for part in parts])
    return Scored(
        torch.cat([part.token_logps for part in parts]),
        torch.cat([part.response_of + start for part, start in zip(parts, starts, strict=True)]),
        sum(part.n_responses for part in parts),
        {name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
    )


def join_pairs(parts: Sequence[Pairs], n_responses: Sequence[int]) -> Pairs:
    """The opinions of several micro-batches of ``n_responses`` responses each, as one."""
    responses, groups = _starts(n_responses), _starts([part.n_groups for part in parts])
    shifted = [
        replace(part, yw_idxs=part.yw_idxs + r, yl_idxs=part.yl_idxs + r, group_of=part.group_of + g)
        for part, r, g in zip(parts, responses, groups, strict=True)
    ]
    return Pairs(*(torch.cat([getattr(part, name) for part in shifted]) for name in Pairs.__dataclass_fields__))


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:k]) for k in range(len(counts))]
