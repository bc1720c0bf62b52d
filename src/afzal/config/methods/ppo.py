"""PPO: proximal policy optimisation with a value model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ..method import Cost, Expression, Method, Paper
from ..online import ValueSettings
from ..training import PenaltyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered


class PPOConfig(ValueSettings, PenaltyConfig, frozen=True):
    """Proximal policy optimisation with a value model."""

    method: Literal["ppo"] = Field("ppo", description="Proximal policy optimisation.")
    lr: float = Field(3e-6, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    ppo_epochs: int = Field(4, ge=1, description="Passes over the answers of an iteration.")
    whiten: bool = Field(True, description="Normalise the advantages of an iteration to mean 0 and variance 1.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token; 1 means no discount.")
    lam: float = Field(
        0.95, ge=0, le=1, description="GAE: 1 trusts only the rewards (more noise), 0 the value model (more bias)."
    )

    @property
    def critic(self) -> PPOConfig:
        return self

    @model_validator(mode="after")
    def _value_parts(self) -> Self:
        if self.value == "shared":
            self._refuse(("value_model",), "the value model is a head on the policy")
        if self.lr == 0:
            self._refuse(("value_lr",), "lr is 0, and value_lr follows its schedule")
        return self


def objective(config: PPOConfig) -> Expression:
    """The clipped objective of the policy, and the loss of the value model."""
    clips = {"clip": config.clip, "clip_high": config.clip_high, "value_clip": config.value_clip}
    return f"ppo + {config.vf_coef!r}*value", clips


def advantages(answers: Answered, config: PPOConfig, kl_coef: float) -> dict[str, Tensor]:
    """GAE of the token rewards, and the value model's targets."""
    from afzal.objectives.advantages import gae, penalties, token_rewards, whiten

    rewards = token_rewards(answers.scores, penalties(answers, kl_coef), answers.mask)
    gae_advantage = gae(rewards, answers.old_value, answers.mask, gamma=config.gamma, lam=config.lam)
    return {
        "advantage": whiten(gae_advantage, answers.mask) if config.whiten else gae_advantage,
        "old_value": answers.old_value,
        "target": gae_advantage + answers.old_value,
    }


METHOD = Method(
    name="ppo",
    line="Proximal policy optimisation: the policy's own answers, a reward, and a value model.",
    title="proximal policy optimisation",
    full="proximal policy optimisation (PPO)",
    settings=PPOConfig,
    objective=objective,
    advantages=advantages,
    cost=Cost(1, reference=True, value=True, reward_model=True, online=True),
    over_optimises=False,
    paper=Paper(
        "schulman2017proximal",
        "Proximal Policy Optimization Algorithms",
        "Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg",
        "2017",
        "1707.06347",
    ),
)
