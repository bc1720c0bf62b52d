"""A linear Bradley-Terry model of pairs: P(first is better) = sigma(x' theta), where x is the features of the first
response minus those of the second.

Shapes: N pairs, D features. There is no intercept, so swapping the responses of a pair negates x, flips the label and
changes nothing else. Margins are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The posterior in Laplace's approximation: mean ``theta`` ``[D]`` and ``precision`` ``[D, D]``, the Hessian of the
    negative log posterior at its minimum."""

    theta: np.ndarray
    precision: np.ndarray


def sigmoid(margins: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-d), without overflow."""
    small = np.exp(-np.abs(margins))
    return np.where(margins >= 0, 1.0, small) / (1 + small)


def fit(x: np.ndarray, p_first: np.ndarray, weight: np.ndarray, ridge: float) -> Fit:
    """The maximum of sum w [y log sigma(x'theta) + (1 - y) log sigma(-x'theta)] - ridge / 2 |theta|^2.

    Args:
        x: ``[N, D]`` feature differences.
        p_first: ``[N]`` y, the share of votes for the first response, from 0 to 1.
        weight: ``[N]`` w, the number of votes.
        ridge: precision of the Gaussian prior on every parameter, above 0; larger values pull theta towards 0.

    Raises:
        ValueError: the ridge is not above 0, or Newton's method did not converge.
    """
    if not ridge > 0:
        raise ValueError(f"the ridge must be above 0, not {ridge}")
    size = x.shape[1]
    theta, prior = np.zeros(size), ridge * np.eye(size)

    def height(parameters: np.ndarray) -> float:
        d = x @ parameters
        losses = p_first * np.logaddexp(0, -d) + (1 - p_first) * np.logaddexp(0, d)
        return -float(weight @ losses) - ridge / 2 * float(parameters @ parameters)

    current = height(theta)
    for _ in range(STEPS):
        p = sigmoid(x @ theta)
        precision = (x * (weight * p * (1 - p))[:, None]).T @ x + prior
        step, scale = np.linalg.solve(precision, x.T @ (weight * (p_first - p)) - ridge * theta), 1.0
        while (candidate := height(theta + scale * step)) < current and scale > 1e-6:
            scale /= 2
        theta, current = theta + scale * step, candidate
        if np.abs(step).max(initial=0.0) < 1e-8:
            p = sigmoid(x @ theta)
            return Fit(theta, (x * (weight * p * (1 - p))[:, None]).T @ x + prior)
    raise ValueError("the fit of the linear Bradley-Terry model did not converge")
