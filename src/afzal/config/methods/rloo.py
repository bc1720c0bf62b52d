"""RLOO: REINFORCE with the other answers' mean reward as baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import PenaltyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from afzal.objectives.advantages import Answered


class RLOOConfig(PenaltyConfig, frozen=True):
    """REINFORCE with the other answers' mean reward as baseline."""

    method: Literal["rloo"] = Field("rloo", description="REINFORCE, leave one out.")
    n: int = Field(4, ge=2, description="Answers per prompt and iteration.")


def objective(config: RLOOConfig) -> Expression:
    """The clipped objective on whole answers."""
    return "rloo", {"clip": config.clip, "clip_high": config.clip_high}


def advantages(answers: Answered, config: RLOOConfig, kl_coef: float) -> dict[str, Tensor]:
    """Each answer's reward minus KL penalty, relative to the mean of its siblings."""
    from afzal.objectives.advantages import penalties, rloo, spread

    returns = (answers.scores - penalties(answers, kl_coef).sum(1)).reshape(-1, config.n)
    return {"advantage": spread(rloo(returns).flatten(), answers.mask)}


METHOD = Method(
    name="rloo",
    line="REINFORCE, leave one out: several answers per prompt, with the others' mean reward as baseline.",
    title="REINFORCE, leave one out",
    full="REINFORCE with a leave-one-out baseline (RLOO)",
    settings=RLOOConfig,
    objective=objective,
    advantages=advantages,
    cost=Cost(4, reference=True, reward_model=True, online=True),
    over_optimises=False,
    paper=Paper(
        "ahmadian2024back",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
        "Ahmadian, Arash and Cremer, Chris and Gallé, Matthias and Fadaee, Marzieh and Kreutzer, Julia and "
        "Pietquin, Olivier and Üstün, Ahmet and Hooker, Sara",
        "2024",
        "2402.14740",
    ),
)
