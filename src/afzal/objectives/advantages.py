"""Advantages from rewards: how much better than expected a token or response was.

Shapes: N responses of up to L tokens, a mask ``[N, L]`` of real tokens (a prefix of each row); G groups of K responses.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Answered(Protocol):
    """N answers of a policy with their per-token numbers.

    Attributes:
        scores: ``[N]`` float64 rewards.
        mask: ``[N, L]`` real tokens.
        old_logp, ref_logp: ``[N, L]`` float64 nats under the policy that wrote them and under the reference.
        old_value: ``[N, L]`` float64 values; zeros without a value model.
    """

    @property
    def scores(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def old_logp(self) -> Tensor: ...
    @property
    def ref_logp(self) -> Tensor: ...
    @property
    def old_value(self) -> Tensor: ...


def penalties(answers: Answered, kl_coef: float) -> Tensor:
    """``[N, L]`` kl_coef (log pi - log pi_ref) of each token: the cost of leaving the reference."""
    return kl_coef * (answers.old_logp - answers.ref_logp)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Each answer's value ``[N]`` at all of its real tokens, ``[N, L]``."""
    return torch.where(mask, values[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates ``[N, L]``: sum_l (gamma lam)^l delta_{t+l}, 0 outside the mask.

    delta_t = R_t + gamma V_{t+1} - V_t, with V = 0 after the last token (Schulman et al. 2015, arXiv 1506.02438,
    eq. 16). lam = gamma = 1 gives the reward to go minus the value, lam = 0 the one-step error.

    Args:
        rewards, values: ``[N, L]``; values outside the mask are not read.
    """
    real = mask.to(values.dtype)
    values = torch.where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = (torch.where(mask, rewards, 0.0) + gamma * next_values - values) * real
    estimates, running = [], torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + gamma * lam * running
        estimates.append(running)
    return torch.stack(estimates[::-1], dim=1) * real


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """The reward of each token ``[N, L]``: minus its penalty, plus the answer's score ``[N]`` at the last real
    token."""
    last = mask.sum(1).clamp(min=1) - 1
    rewards = torch.where(mask, -penalties, 0.0)
    return rewards.scatter_add(1, last[:, None], torch.where(mask.any(1), scores, 0.0)[:, None])


def whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Values ``[N, L]`` with mean 0 and variance 1 over the real tokens, 0 elsewhere."""
    real = mask.to(values.dtype)
    n = real.sum().clamp(min=1)
    mean = (values * real).sum() / n
    variance = (((values - mean) * real) ** 2).sum() / n
    return (values - mean) * real / (variance + eps).sqrt()


def rloo(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the other responses to the prompt, ``[G, K]``: K / (K - 1) (R - mean).

    Sums to 0 in every group (Ahmadian et al. 2024, arXiv 2402.14740).
    """
    k = rewards.shape[1]
    if k < 2:
        raise ValueError("leave-one-out needs at least two responses per prompt")
    return (rewards - rewards.mean(1, keepdim=True)) * (k / (k - 1))


def group_normalised(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(R - mean) / (std + eps) within each prompt's responses, ``[G, K]``; equal rewards give 0.

    ``eps``, as in TRL, is far above the rounding of equal rewards, which would otherwise give advantages of ± 1. The
    standard deviation has the divisor K - 1 (Shao et al. 2024, arXiv 2402.03300, GRPO). Dividing by it biases the
    policy gradient.
    """
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps)
