"""Losses on the policy's own answers, whose rewards have been turned into advantages: PPO and its relatives.

A rollout is data. Values from the time of sampling are in ``policy.extras`` for every token, as constants:

    old_logp    log-prob of the token when it was sampled, nats
    advantage   how much better than expected it was, in the reward's unit; larger is better
    old_value   the value before it at that time, and
    target      the return to fit, both in the reward's unit (PPO with a value model)
    ref_logp    its log-prob under the reference, nats (GRPO)

and ``value`` is that of the current value model, with gradient. ratio = pi / pi_old of a token, or of a full answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import Pairs, Scored
from .kl import k3
from .margins import EXPONENT_LIMIT
from .metrics import Tally
from .registry import NON_NEGATIVE, POSITIVE, objective


def ratio_of(log_ratio: Tensor) -> Tensor:
    """pi / pi_old from its logarithm, clamped to [e^-80, e^80], with no gradient outside."""
    return log_ratio.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()


def clipped(ratio: Tensor, advantage: Tensor, clip: float, clip_high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip_high) A): no gradient once the ratio has gone far enough.

    A ``clip_high`` of 0 means ``clip``.
    """
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + (clip_high or clip)))


def _drift_metrics(log_ratio: Tensor, clip: float, clip_high: float) -> Tally:
    """How far the policy has moved since sampling: share clipped, and KL(old || new) in nats."""
    with torch.no_grad():
        ratio = ratio_of(log_ratio.double())
        n = torch.ones_like(ratio).sum()
        outside = (ratio < 1 - clip) | (ratio > 1 + (clip_high or clip))
        return {
            "policy/clipfrac": (outside.double().sum(), n),
            "policy/approxkl": ((ratio - 1 - log_ratio.double()).sum(), n),
            "policy/ratio": (ratio.sum(), n),
        }


def _token_log_ratio(policy: Scored) -> Tensor:
    return policy.token_logps - policy.extras["old_logp"]


def _answer_log_ratio(policy: Scored) -> Tensor:
    return policy.total(_token_log_ratio(policy))


def _mean(policy: Scored, values: Tensor) -> Tensor:
    """``[B]`` mean over the tokens of each response."""
    return policy.total(values) / policy.total(torch.ones_like(values)).clamp(min=1)


def _by_token(policy: Scored, pairs: Pairs, *, clip: float, clip_high: float) -> Tally:
    return _drift_metrics(_token_log_ratio(policy), clip, clip_high)


def _by_answer(policy: Scored, pairs: Pairs, *, clip: float, clip_high: float) -> Tally:
    return _drift_metrics(_answer_log_ratio(policy), clip, clip_high)


def _grpo_metrics(policy: Scored, pairs: Pairs, *, clip: float, clip_high: float, beta: float) -> Tally:
    return _drift_metrics(_token_log_ratio(policy), clip, clip_high)


@objective(
    "ppo",
    unit="token",
    needs_reference=False,
    scores="rollout",
    uses=(),
    bounded="none",
    limits={"clip": POSITIVE, "clip_high": NON_NEGATIVE},
    metrics=_by_token,
    formula="-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = pi / pi_old of the token",
    paper="Schulman et al. 2017, arXiv 1707.06347, eq. 7",
)
def ppo(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, clip: float = 0.2, clip_high: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Clipped policy loss of every token, ``[M]`` in the reward's unit; the rewards are mean advantages ``[B]``.

    At pi = pi_old its gradient is that of REINFORCE, -A grad log pi. By hand: ratio 1.5, A 2, clip 0.2: -2.4,
    without gradient; A -2: 3, with gradient.

    Args:
        clip: the distance from 1 up to which the ratio has a gradient.
        clip_high: the same upwards, if not 0 (DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 10).
    """
    advantage = policy.extras["advantage"]
    return clipped(ratio_of(_token_log_ratio(policy)), advantage, clip, clip_high), _mean(policy, advantage).detach()


def _value_metrics(policy: Scored, pairs: Pairs, *, value_clip: float) -> Tally:
    with torch.no_grad():
        clipped = (policy.extras["value"] - policy.extras["old_value"]).abs() > value_clip
        n = torch.ones_like(clipped, dtype=torch.float64).sum()
        return {"value/clipfrac": (clipped.double().sum(), n), "value/mean": (policy.extras["value"].double().sum(), n)}


@objective(
    "value",
    unit="token",
    needs_reference=False,
    scores="rollout",
    uses=(),
    limits={"value_clip": POSITIVE},
    metrics=_value_metrics,
    formula="1/2 max((V - target)^2, (clip(V, V_old - value_clip, V_old + value_clip) - target)^2)",
    paper="Huang et al. 2024, arXiv 2403.17031 (the N+ details); clipping as in OpenAI's baselines",
)
def value(policy: Scored, reference: Scored | None, pairs: Pairs, *, value_clip: float = 0.2) -> tuple[Tensor, Tensor]:
    """Loss of the value model at every token, ``[M]`` in the reward's unit squared; the rewards are mean values.

    By hand: V 1, V_old 0, target 2, value_clip 0.2: max(1, 1.8^2) / 2 = 1.62, without gradient; target 0.5: 0.125.
    """
    predicted, old, target = (policy.extras[name] for name in ("value", "old_value", "target"))
    clipped = torch.minimum(torch.maximum(predicted, old - value_clip), old + value_clip)
    losses = 0.5 * torch.maximum((predicted - target) ** 2, (clipped - target) ** 2)
    return losses, _mean(policy, predicted).detach()


@objective(
    "rloo",
    unit="response",
    needs_reference=False,
    scores="rollout",
    uses=(),
    bounded="none",
    limits={"clip": POSITIVE, "clip_high": NON_NEGATIVE},
    metrics=_by_answer,
    formula="-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = pi / pi_old of the whole answer",
    paper="Ahmadian et al. 2024, arXiv 2402.14740",
)
def rloo(
    policy: Scored, reference: Scored | None, pairs: Pairs, *, clip: float = 0.2, clip_high: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Clipped policy loss of every answer as one action, ``[B]`` in the reward's unit; the rewards are advantages.

    At pi = pi_old, with leave-one-out advantages, its gradient is an unbiased estimate of the gradient of the expected
    reward. By hand: ratio 1.5, A 2, clip 0.2: -2.4.
    """
    advantage = _mean(policy, policy.extras["advantage"])
    return clipped(ratio_of(_answer_log_ratio(policy)), advantage, clip, clip_high), advantage.detach()


@objective(
    "grpo",
    unit="response",
    needs_reference=False,
    scores="rollout",
    uses=(),
    bounded="none",
    limits={"clip": POSITIVE, "clip_high": NON_NEGATIVE, "beta": NON_NEGATIVE},
    metrics=_grpo_metrics,
    formula="mean over the answer's tokens of -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + beta k3(pi, pi_ref)",
    paper="Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4",
)
def grpo(
    policy: Scored,
    reference: Scored | None,
    pairs: Pairs,
    *,
    clip: float = 0.2,
    clip_high: float = 0.0,
    beta: float = 0.04,
) -> tuple[Tensor, Tensor]:
    """Clipped loss of each answer, a mean over its own tokens, ``[B]``; the rewards are mean advantages ``[B]``.

    So a token of a long answer has less weight than one of a short answer. The k3 term's gradient is that of KL(ref ||
    pi). By hand: two tokens of ratio 1, A 2, k3 = e^-1 at both, beta 0.5: -2 + 0.183940 = -1.816060.

    Args:
        beta: strength of the pull to the reference.
    """
    advantage = policy.extras["advantage"]
    losses = clipped(ratio_of(_token_log_ratio(policy)), advantage, clip, clip_high)
    if beta:
        losses = losses + beta * k3(policy.token_logps - policy.extras["ref_logp"])
    return _mean(policy, losses), _mean(policy, advantage).detach()
