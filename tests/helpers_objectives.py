"""Scored responses and opinions made by hand or at random, and any objective called on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afzal import objectives
from afzal.objectives import Pairs, Scored, pairs

F64 = torch.float64
# objectives on data; losses on rollouts have separate tests
EVERY = [name for name, o in objectives.REGISTRY.items() if o.scores != "rollout"]
WITH_REFERENCE = [name for name in EVERY if objectives.get(name).needs_reference]
ON_PAIRS = [name for name in EVERY if objectives.get(name).unit == "pair"]
EXTRAS = ("log_sum_p2", "kl_ref_policy", "logp_away", "logp_towards", "piece_log_ratio", "changed")


def of_each_kind(names: Iterable[str]) -> list[Any]:
    """Names as parameters of a test of the code around an objective: the first of each kind, the others marked slow.

    Two are of a kind if the loop treats them alike. What each of them computes has separate tests.
    """
    seen: set[Any] = set()
    params = []
    for name in names:
        o = objectives.get(name)
        asked = (o.unit, o.scores, o.needs_reference, o.couples_batch, o.length_normalised, o.statistics, o.extras)
        kind = (*asked, o.statistic is None, o.initial_state is None, not o.learnable)
        params.append(pytest.param(name, marks=[pytest.mark.slow] if kind in seen else []))
        seen.add(kind)
    return params


def scored(logps: Any, lengths: list[int] | None = None, **extras: Any) -> Scored:
    """Responses with the given summed log-probs, spread evenly over their tokens; extras are given per token."""
    logps = torch.as_tensor(logps, dtype=F64)
    lengths = lengths or [1] * len(logps)
    tokens = torch.cat([(value / n).repeat(n) for value, n in zip(logps, lengths, strict=True)])
    response_of = torch.repeat_interleave(torch.arange(len(logps)), torch.tensor(lengths))
    return Scored(tokens, response_of, len(logps), {k: torch.as_tensor(v, dtype=F64) for k, v in extras.items()})


def opinions(t: int, *, p: Any = None, desirable: Any = None, margin: Any = None, score: Any = None) -> Pairs:
    """``t`` pairs of responses (0, 1), (2, 3), ...: the first of each is better, and labelled so."""
    index = torch.arange(2 * t)
    return pairs(
        index[0::2],
        index[1::2],
        p=_real(p, [1.0] * t),
        weight=torch.ones(t, dtype=F64),
        margin=_real(margin, [0.0] * t),
        desirable=_real(desirable, [1.0, 0.0] * t),
        group_of=index // 2,
        score=_real(score, [1.0, 0.0] * t),
    )


def one_group(score: Any) -> Pairs:
    """One prompt with a response for each score, and no pairs."""
    none = torch.zeros(0, dtype=torch.int64)
    score = torch.as_tensor(score, dtype=F64)
    return pairs(
        none, none, group_of=torch.zeros(len(score), dtype=torch.int64), score=score, desirable=score * math.nan
    )


def _real(given: Any, default: list[float]) -> Tensor:
    return torch.as_tensor(default if given is None else given, dtype=F64)


def fill(name: str, policy: Scored, **given: Any) -> dict[str, Any]:
    """Fill in the arguments that the loop would, unless they are given."""
    objective = objectives.get(name)
    if objective.statistic is not None:
        given.setdefault("statistic", torch.zeros((), dtype=policy.token_logps.dtype))
    if objective.initial_state is not None:
        given.setdefault("state", objective.initial_state({**objective.parameters, **given}))
    return given


def run(name: str, policy: Scored, reference: Scored | None, given: Pairs, **parameters: Any) -> tuple[Tensor, Tensor]:
    """Losses and rewards of an objective; statistics that are missing are those of a policy equal to its reference."""
    objective = objectives.get(name)
    missing = set(objective.all_extras) - policy.extras.keys()
    zero = ("kl_ref_policy", "piece_log_ratio", "changed")
    neutral = {k: torch.zeros_like(policy.token_logps) if k in zero else policy.token_logps for k in missing}
    policy = replace(policy, extras={**policy.extras, **neutral})
    return objective.fn(
        policy, reference if objective.needs_reference else None, given, **fill(name, policy, **parameters)
    )


def mean_loss(name: str, policy: Scored, reference: Scored | None, given: Pairs, **parameters: Any) -> Tensor:
    """The loop's reduction of the losses: the weighted sum over the count."""
    losses, _ = run(name, policy, reference, given, **parameters)
    weights = objectives.unit_weights(objectives.get(name).unit, given, policy.response_of).to(losses.dtype)
    return (losses * weights).sum() / weights.sum()


def random_case(name: str, seed: int, *, groups: int = 3, dtype: torch.dtype = F64) -> tuple[Scored, Scored, Pairs]:
    """A policy, a reference and opinions on 2 to 4 responses of 1 to 6 tokens for each of some prompts.

    Log-probs are multiples of 2^-12, so their sums are exact in float32. Fields that an objective does not use are
    neutral: p and weight 1.
    """
    rng = torch.Generator().manual_seed(seed)
    uses = objectives.get(name).uses
    sizes = torch.randint(2, 5, (groups,), generator=rng)
    b = int(sizes.sum())
    lengths = torch.randint(1, 7, (b,), generator=rng)
    response_of, m = torch.repeat_interleave(torch.arange(b), lengths), int(lengths.sum())
    rand = lambda n: torch.rand(n, generator=rng, dtype=F64)  # noqa: E731
    exact = lambda x: (torch.round(x * 4096) / 4096).to(dtype)  # noqa: E731
    policy, reference = exact(-2.5 * rand(m) - 0.01), exact(-2.5 * rand(m) - 0.01)
    extras = {
        "log_sum_p2": exact(-2 * rand(m)),
        "kl_ref_policy": exact(0.5 * rand(m)),
        "logp_away": policy + exact(0.1 * rand(m) - 0.05),
        "logp_towards": policy + exact(0.1 * rand(m) - 0.05),
    }
    wanted = set(objectives.get(name).all_extras)
    if wanted & {"piece_log_ratio", "changed"}:  # drawn only here, so that all other draws stay the same
        extras |= {"piece_log_ratio": exact(rand(m) - 0.5), "changed": (rand(m) < 0.5).to(dtype)}
    starts = torch.cumsum(sizes, 0) - sizes
    index = torch.cat([_pairs_of(int(s), int(n)) for s, n in zip(starts, sizes, strict=True)])
    t = len(index)
    flip = rand(t) < 0.5
    index = torch.where(flip[:, None], index.flip(1), index)
    choice = torch.randint(0, 4, (t,), generator=rng)
    p = torch.tensor([1.0, 0.5, 0.75, 1.0], dtype=F64)[choice] if "p" in uses else torch.ones(t, dtype=F64)
    weight = exact(0.25 + rand(t)) if "weight" in uses else torch.ones(t)
    labels = torch.tensor([1.0, 0.0, math.nan], dtype=F64)[torch.randint(0, 3, (b,), generator=rng)]
    labels[:2] = torch.tensor([1.0, 0.0])
    score = torch.round(4 * rand(b))
    score[torch.cat([starts[sizes == 4] + 3, starts[:0]])] = math.nan  # one of four is not rated
    given = Pairs(
        index[:, 0],
        index[:, 1],
        p.to(dtype),
        weight.to(dtype),
        torch.round(6 * rand(t) - 3).to(dtype),
        labels.to(dtype),
        torch.repeat_interleave(torch.arange(groups), sizes),
        score.to(dtype),
        torch.repeat_interleave(torch.arange(groups), sizes) % 2 if "task" in uses else torch.zeros(b).long(),
    )
    kept = {k: v for k, v in extras.items() if k in wanted}
    return Scored(policy, response_of, b, kept), Scored(reference, response_of, b), given


def _pairs_of(start: int, size: int) -> Tensor:
    """The responses of a prompt, each compared with the next."""
    first = torch.arange(start, start + size - 1)
    return torch.stack([first, first + 1], 1)


def with_numbers(name: str, trees: list[Any]) -> list[Any]:
    """Trees with invented values for an objective's per-token inputs: every second token is a changed one."""
    if "changed" not in objectives.get(name).extras:
        return trees
    marked = lambda b: replace(b, numbers={"changed": np.arange(int(b.scored.sum()), dtype=np.float32) % 2})  # noqa: E731
    return [replace(t, branches=tuple(map(marked, t.branches))) for t in trees]
