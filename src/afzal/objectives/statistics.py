"""Per-token numbers that some objectives need from the whole vocabulary, beside the target's log-prob.

A statistic is a pure function of one tile of logits

    fn(logits [n, V], target [n], *, <ref_logits [n, V]>, <parameters of the objective>) -> [n]

in float32. The model's room computes it in the same tiles as the log-probs, and only for objectives that declare it.
Its name in ``Scored.extras`` is the function's. One that takes ``ref_logits`` needs a reference that can be run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Statistic = Callable[..., Tensor]


def needs_reference_logits(statistic: Statistic) -> bool:
    """Whether a statistic compares the policy's logits with the reference's."""
    return "ref_logits" in inspect.signature(statistic).parameters


def parameters_of(statistic: Statistic, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an objective's parameters that a statistic takes."""
    return {name: value for name, value in parameters.items() if name in inspect.signature(statistic).parameters}


@torch.no_grad()
def log_sum_p2(logits: Tensor, target: Tensor) -> Tensor:
    """log sum_v p(v)^2, ``[n]`` nats, without gradient: what a token drawn from the policy has on average (WPO)."""
    return torch.logsumexp(2 * logits.log_softmax(-1), -1)


def kl_ref_policy(logits: Tensor, target: Tensor, *, ref_logits: Tensor) -> Tensor:
    """KL(reference || policy) of the next token, ``[n]`` nats, >= 0, with gradient (TDPO)."""
    return _divergence(ref_logits.log_softmax(-1), logits.log_softmax(-1))


@torch.no_grad()
def kl_policy_ref(logits: Tensor, target: Tensor, *, ref_logits: Tensor) -> Tensor:
    """KL(policy || reference) of the next token, ``[n]`` nats, >= 0, without gradient: what went with one token."""
    return _divergence(logits.log_softmax(-1), ref_logits.log_softmax(-1))


@torch.no_grad()
def logp_away(logits: Tensor, target: Tensor, *, ref_logits: Tensor, epsilon: float) -> Tensor:
    """Log-prob of the target at (1 + epsilon) z - epsilon z_ref, ``[n]`` nats: a step away from the reference."""
    return _target_logp(_mixed(logits, ref_logits, 1 + epsilon), target)


@torch.no_grad()
def logp_towards(logits: Tensor, target: Tensor, *, ref_logits: Tensor, epsilon: float) -> Tensor:
    """Log-prob of the target at (1 - epsilon) z + epsilon z_ref, ``[n]`` nats: a step towards the reference."""
    return _target_logp(_mixed(logits, ref_logits, 1 - epsilon), target)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probs ``[n, V]``, ``[n]`` nats; 0 log 0 is 0, and inf where p has what q has not."""
    p = log_p.exp()
    barred = p == 0  # -inf logits, such as those of padding in the vocabulary: 0 times -inf would be NaN
    return (p * (log_p.masked_fill(barred, 0.0) - log_q.masked_fill(barred, 0.0))).sum(-1)


def _mixed(logits: Tensor, ref_logits: Tensor, share: float) -> Tensor:
    """share z + (1 - share) z_ref; a token that either bars stays barred."""
    barred = logits.isneginf() | ref_logits.isneginf()
    return (share * logits + (1 - share) * ref_logits).masked_fill(barred, -torch.inf)


def _target_logp(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
