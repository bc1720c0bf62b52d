"""Per-token numbers that some objectives need from the full vocabulary, in addition to the target's log-prob.

A statistic is a pure function of the log-probs of all tokens, in one tile

    fn(logp [n, V], target [n], *, <ref_logp [n, V]>, <parameters of the objective>) -> [n]

in float32. ``afzal.model`` computes it in the same tiles as the targets' log-probs, and only for objectives that
declare it. Its name in ``Scored.extras`` is the function's. A statistic that takes ``ref_logp`` needs a reference model
that can be run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Statistic = Callable[..., Tensor]


def compares_with_reference(statistic: Statistic) -> bool:
    """Whether a statistic compares the policy's log-probs with the reference's."""
    return "ref_logp" in inspect.signature(statistic).parameters


def parameters_of(statistic: Statistic, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an objective that a statistic takes."""
    return {name: value for name, value in parameters.items() if name in inspect.signature(statistic).parameters}


@torch.no_grad()
def log_sum_p2(logp: Tensor, target: Tensor) -> Tensor:
    """log sum_v p(v)^2, ``[n]`` nats, without gradient: log of the mean probability of a drawn token (WPO)."""
    return torch.logsumexp(2 * logp, -1)


def kl_ref_policy(logp: Tensor, target: Tensor, *, ref_logp: Tensor) -> Tensor:
    """KL(reference || policy) of the next token, ``[n]`` nats, >= 0, with gradient (TDPO)."""
    return _divergence(ref_logp, logp)


@torch.no_grad()
def kl_policy_ref(logp: Tensor, target: Tensor, *, ref_logp: Tensor) -> Tensor:
    """KL(policy || reference) of the next token, ``[n]`` nats, >= 0, without gradient."""
    return _divergence(logp, ref_logp)


@torch.no_grad()
def logp_away(logp: Tensor, target: Tensor, *, ref_logp: Tensor, epsilon: float) -> Tensor:
    """Log-prob of the target at (1 + epsilon) z - epsilon z_ref (logits), ``[n]`` nats: away from the reference."""
    return _target_logp(_mixed(logp, ref_logp, 1 + epsilon), target)


@torch.no_grad()
def logp_towards(logp: Tensor, target: Tensor, *, ref_logp: Tensor, epsilon: float) -> Tensor:
    """Log-prob of the target at (1 - epsilon) z + epsilon z_ref (logits), ``[n]`` nats: towards the reference."""
    return _target_logp(_mixed(logp, ref_logp, 1 - epsilon), target)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probs ``[n, V]``, ``[n]`` nats; 0 log 0 is 0, and the result is inf if p has mass where q has
    none."""
    p = log_p.exp()
    # -inf for barred tokens, such as vocabulary padding, would give NaN, even times 0
    return (p * (log_p - log_q).masked_fill_(p == 0, 0.0)).sum(-1)


def _mixed(logp: Tensor, ref_logp: Tensor, share: float) -> Tensor:
    """share z + (1 - share) z_ref up to a constant, ``[n, V]``; a token barred by either stays barred."""
    barred = logp.isneginf() | ref_logp.isneginf()
    return (share * logp + (1 - share) * ref_logp).masked_fill(barred, -torch.inf)


def _target_logp(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
