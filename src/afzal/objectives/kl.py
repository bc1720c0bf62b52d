"""Estimators of KL(pi || pi_ref) from samples y ~ pi and their log-ratios l = log pi(y) - log pi_ref(y), in nats.

As a value, k1 and k3 are unbiased and k2 is not. As losses differentiated through l: the mean of k1 has
no gradient, that of k2 has the gradient of KL(pi || pi_ref), that of k3 the gradient of KL(pi_ref || pi) (Schulman
2020, 'Approximating KL divergence').
"""

from __future__ import annotations

import torch
from torch import Tensor

from .margins import EXPONENT_LIMIT


def k1(log_ratio: Tensor) -> Tensor:
    """l: unbiased, with high variance, and negative for some samples. Suitable in a reward, useless as a loss."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """l^2 / 2: biased as a value, with the gradient of KL(pi || pi_ref) as a loss."""
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^-l - 1 + l: unbiased and never negative, with the gradient of KL(pi_ref || pi) as a loss."""
    return torch.expm1(-log_ratio.clamp(min=-EXPONENT_LIMIT)) + log_ratio


def next_kl_coef(coef: float, kl: float, *, target: float, horizon: float, n: int) -> float:
    """The strength of a KL penalty after ``n`` answers with mean KL ``kl`` nats; unchanged if that is ``target``.

    coef (1 + e n / horizon), e = clip(kl / target - 1, -0.2, 0.2) (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    Args:
        horizon: answers over which it may change by a fifth; larger is slower.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * n / horizon)
