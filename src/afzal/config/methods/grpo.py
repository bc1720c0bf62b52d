"""GRPO: group-relative policy optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import OnlineConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered


class GRPOConfig(OnlineConfig, frozen=True):
    """Group-relative policy optimisation."""

    method: Literal["grpo"] = Field("grpo", description="Group-relative policy optimisation.")
    n: int = Field(4, ge=2, description="Answers per prompt and iteration.")
    kl_coef: float = Field(
        0.04, ge=0, description="Weight of the KL penalty in the loss; larger stays closer to the reference."
    )
    group_std: bool = Field(
        True, description="Divide advantages by their group's reward spread, which gives easy prompts more weight."
    )


def objective(config: GRPOConfig) -> Expression:
    """The clipped objective, with the KL penalty as a term of the loss."""
    return "grpo", {"clip": config.clip, "clip_high": config.clip_high, "beta": config.kl_coef}


def advantages(answers: Answered, config: GRPOConfig, kl_coef: float) -> dict[str, Tensor]:
    """Rewards relative to those of the other answers to the prompt."""
    from afzal.objectives.advantages import group_normalised, spread

    scores = answers.scores.reshape(-1, config.n)
    relative = group_normalised(scores) if config.group_std else scores - scores.mean(1, keepdim=True)
    return {"advantage": spread(relative.flatten(), answers.mask), "ref_logp": answers.ref_logp}


METHOD = Method(
    name="grpo",
    line="Group-relative policy optimisation: advantages within the answers to a prompt.",
    title="group-relative policy optimisation",
    full="group-relative policy optimisation (GRPO)",
    settings=GRPOConfig,
    objective=objective,
    advantages=advantages,
    cost=Cost(4, reference=True, reward_model=True, online=True),
    over_optimises=False,
    paper=Paper(
        "shao2024deepseekmath",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "Shao, Zhihong and Wang, Peiyi and Zhu, Qihao and Xu, Runxin and Song, Junxiao and others",
        "2024",
        "2402.03300",
    ),
)
