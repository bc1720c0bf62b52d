"""Exact evaluation on the enumerable language: sums over all responses, no sampling.

Policies are log-probabilities ``[X, Y]`` in nats over :data:`~afzal.lab.language.RESPONSES`, float64. Figures are means
over the X prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.lab.language import EOS, LENGTHS, MAX_LENGTH, N_CONTENT, RESPONSES, SEP

_STRICTEST = 1e6
"""Largest multiplier to try."""
_HALVINGS = 60
BETAS: tuple[float, ...] = tuple(np.geomspace(8, 0.05, 120).tolist())


def log_policy(model: Any, prompt: np.ndarray) -> np.ndarray:
    """Log-probability ``[X, Y]`` of every response to each prompt ``[X, 3]`` under a causal LM.

    The 6³ rows of three content tokens cover all decisions: shorter responses are their prefixes followed by the end
    token, and the fourth token is predicted at their last position. Nothing is renormalised: a row of probabilities
    sums to 1 if and only if the model stays inside the language.
    """
    import torch

    content = RESPONSES[LENGTHS == MAX_LENGTH - 1][:, : MAX_LENGTH - 1]
    was_training = model.training
    model.eval()
    rows = []
    with torch.inference_mode():
        for x in np.asarray(prompt):
            head = np.broadcast_to(np.append(x, SEP), (len(content), 4))
            ids = torch.from_numpy(np.concatenate([head, content], axis=1)).to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]  # virtual tokens come first
            logits = logits[:, 3:].double()
            rows.append(_assemble(torch.log_softmax(logits, dim=-1).cpu().numpy()))
    model.train(was_training)
    return np.stack(rows)


def _assemble(steps: np.ndarray) -> np.ndarray:
    """Response log-probs ``[Y]`` from the step log-probs ``[216, 4, 8]`` of the rows of three tokens."""
    tokens = np.where(RESPONSES >= 0, RESPONSES, 0)
    row = tokens[:, :3] @ np.array([N_CONTENT**2, N_CONTENT, 1])
    total = np.zeros(len(RESPONSES))
    for t in range(MAX_LENGTH):
        symbol = np.where(t < LENGTHS, tokens[:, t], EOS)
        total += np.where(t <= LENGTHS, steps[row, t, symbol], 0.0)
    return total


def normalise(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities from unnormalised log-weights ``[X, Y]``."""
    return scores - _logsumexp(scores)


def expected(log_pi: np.ndarray, values: np.ndarray) -> float:
    """E_π[values], a mean over prompts."""
    return float((np.exp(log_pi) * values).sum(1).mean())


def kl(log_pi: np.ndarray, log_ref: np.ndarray) -> float:
    """KL(π‖π_ref) in nats per response, a mean over prompts."""
    pi = np.exp(log_pi)
    ratio = np.where(pi > 0, log_pi, 0.0) - np.where(pi > 0, log_ref, 0.0)
    return float((pi * ratio).sum(1).mean())


def entropy(log_pi: np.ndarray) -> float:
    """Entropy in nats per response, a mean over prompts."""
    return -expected(log_pi, np.where(np.isfinite(log_pi), log_pi, 0.0))


def win_rate(log_pi: np.ndarray, log_other: np.ndarray, rewards: np.ndarray) -> float:
    """Probability that a response of π has a higher reward than one of the other policy; equal rewards count ½."""
    pi, other_pi = np.exp(log_pi), np.exp(log_other)
    total = 0.0
    for p, q, r in zip(pi, other_pi, rewards, strict=True):
        level = np.unique(r, return_inverse=True)[1]
        q_level = np.bincount(level, q)
        total += float(np.bincount(level, p) @ (np.cumsum(q_level) - q_level / 2))
    return total / len(rewards)


def log_partition(log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """log Z(x) ``[X]`` with Z(x) = Σ_y π_ref(y|x) e^{r(x, y)/β}."""
    return _logsumexp(log_ref + rewards / beta)[:, 0]


def optimum(log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """The policy π_ref e^{r/β} / Z that maximises E[r] − β KL (Rafailov et al. 2023, eq. 4)."""
    return normalise(log_ref + rewards / beta)


@dataclass(frozen=True, slots=True, eq=False)
class ConstrainedOptimum:
    """The best policy under a bound on its cost: ``log_pi`` ``[X, Y]`` in nats, and the multiplier that enforces it.

    ``multiplier`` is in reward per cost; 0 if the bound is not active.
    """

    multiplier: float
    log_pi: np.ndarray


def constrained_optimum(
    log_ref: np.ndarray, rewards: np.ndarray, costs: np.ndarray, beta: float, bound: float
) -> ConstrainedOptimum:
    """The policy that maximises E[r] - beta KL with E[c] <= bound, both means over prompts.

    It is π_ref e^{(r - λc)/β} / Z for the smallest λ >= 0 that keeps the bound (Dai et al. 2023, arXiv 2310.12773),
    found by bisection, since the cost falls with λ.

    Args:
        costs: ``[X, Y]`` in any unit; larger is worse.

    Raises:
        ValueError: no policy on the reference's support has a cost that low.
    """

    def policy_at(multiplier: float) -> np.ndarray:
        return optimum(log_ref, rewards - multiplier * costs, beta)

    if expected(policy_at(0.0), costs) <= bound:
        return ConstrainedOptimum(0.0, policy_at(0.0))
    low, high = 0.0, 1.0
    while expected(policy_at(high), costs) > bound:
        low, high = high, 2 * high
        if high > _STRICTEST:
            raise ValueError(f"no policy has a cost of at most {bound:g}")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(policy_at(middle), costs) > bound else (low, middle)
    return ConstrainedOptimum(high, policy_at(high))


def best_of(log_ref: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Log-policy of sampling ``n`` responses and keeping the one with the highest score, at random among equals.

    P(best score ≤ s) = P(score ≤ s)ⁿ, and among equal scores the reference's proportions remain.
    """
    ref = np.exp(log_ref)
    policies = []
    for p, s in zip(ref, scores, strict=True):
        level = np.unique(s, return_inverse=True)[1]
        mass = np.bincount(level, p)
        reached = np.minimum(np.cumsum(mass), 1.0) ** n
        policies.append(p * (np.diff(reached, prepend=0.0) / mass)[level])
    best = np.stack(policies)
    return np.log(best, where=best > 0, out=np.full_like(best, -np.inf))


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The best reward that any policy can have at each KL.

    ``kl`` ``[F]`` rises from 0 (the reference) to the policy that gives only best responses; ``reward`` ``[F]``.
    """

    kl: np.ndarray
    reward: np.ndarray

    def at(self, kl: float) -> float:
        """The best expected reward at a KL in nats, interpolated linearly; beyond the end, the best possible reward."""
        return float(np.interp(kl, self.kl, self.reward))

    def regret(self, kl: float, reward: float) -> float:
        """How far a policy is below the best one at its KL; 0 is optimal."""
        return self.at(kl) - reward

    def share(self, kl: float, reward: float) -> float:
        """The share of the possible gain over the reference at that KL that a policy has won: 1 is optimal.

        At a KL of 0 nothing can be gained, and the share is 1.
        """
        gain = self.at(kl) - self.reward[0]
        return float((reward - self.reward[0]) / gain) if gain > 1e-9 else 1.0


def frontier(log_ref: np.ndarray, rewards: np.ndarray, betas: tuple[float, ...] = BETAS) -> Frontier:
    """The frontier π_ref e^{r/β} / Z over ``betas``, with its two ends (β → ∞ and β → 0)."""
    top = np.where(rewards == rewards.max(1, keepdims=True), log_ref, -np.inf)
    policies = [log_ref, *(optimum(log_ref, rewards, b) for b in sorted(betas, reverse=True)), normalise(top)]
    points = [(kl(p, log_ref), expected(p, rewards)) for p in policies]
    kls, best = np.asarray(points).T
    return Frontier(kls, best)


@dataclass(frozen=True, slots=True)
class Exact:
    """The exact figures of a policy: means over prompts, KL and entropy in nats per response.

    ``optimal`` is the best reward at this KL, ``share`` the share of the possible gain, ``win_rate`` the win rate
    against the reference.
    """

    reward: float
    kl: float
    optimal: float
    share: float
    win_rate: float
    entropy: float


def evaluate(log_pi: np.ndarray, log_ref: np.ndarray, rewards: np.ndarray) -> Exact:
    """All exact figures of a policy against a reference.

    Raises:
        ValueError: the probabilities of a prompt do not sum to 1 ± 1e-3: the model leaves the language.
    """
    for policy in (log_pi, log_ref):
        gap = np.abs(np.exp(policy).sum(1) - 1).max()
        if not gap <= 1e-3:
            raise ValueError(
                f"the total response probability differs from 1 by {gap:.3g}: the model leaves the language"
            )
    edge, reward, distance = frontier(log_ref, rewards), expected(log_pi, rewards), kl(log_pi, log_ref)
    return Exact(
        reward=reward,
        kl=distance,
        optimal=edge.at(distance),
        share=edge.share(distance, reward),
        win_rate=win_rate(log_pi, log_ref, rewards),
        entropy=entropy(log_pi),
    )


def _logsumexp(scores: np.ndarray) -> np.ndarray:
    peak = scores.max(1, keepdims=True)
    return peak + np.log(np.exp(scores - peak).sum(1, keepdims=True))
