"""REINFORCE++: rewards-to-go, whitened over the iteration, without a value model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import PenaltyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered


class ReinforceConfig(PenaltyConfig, frozen=True):
    """REINFORCE++: rewards-to-go, whitened over the iteration, without a value model."""

    method: Literal["reinforce"] = Field("reinforce", description="REINFORCE++.")
    whiten: bool = Field(True, description="Normalise the advantages of an iteration to mean 0 and variance 1.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token; 1 means no discount.")


def objective(config: ReinforceConfig) -> Expression:
    """PPO's clipped objective: REINFORCE++ differs only in its advantages."""
    return "ppo", {"clip": config.clip, "clip_high": config.clip_high}


def advantages(answers: Answered, config: ReinforceConfig, kl_coef: float) -> dict[str, Tensor]:
    """Rewards-to-go: GAE without a value model."""
    import torch

    from afzal.objectives.advantages import gae, penalties, token_rewards, whiten

    rewards = token_rewards(answers.scores, penalties(answers, kl_coef), answers.mask)
    to_go = gae(rewards, torch.zeros_like(rewards), answers.mask, gamma=config.gamma, lam=1.0)
    return {"advantage": whiten(to_go, answers.mask) if config.whiten else to_go}


METHOD = Method(
    name="reinforce",
    line="REINFORCE++: rewards-to-go, whitened over the iteration, without a value model.",
    title="REINFORCE++",
    full="REINFORCE++",
    settings=ReinforceConfig,
    objective=objective,
    advantages=advantages,
    cost=Cost(1, reference=True, reward_model=True, online=True),
    over_optimises=False,
    paper=Paper(
        "hu2025reinforce",
        "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models",
        "Hu, Jian",
        "2025",
        "2501.03262",
    ),
)
