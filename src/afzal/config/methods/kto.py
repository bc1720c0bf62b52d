"""KTO: Kahneman-Tversky optimisation on single responses labelled good or bad."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import BetaConfig


class KTOConfig(BetaConfig, frozen=True):
    """Kahneman-Tversky optimisation on single responses labelled good or bad."""

    method: Literal["kto"] = Field("kto", description="Kahneman-Tversky optimisation.")
    lr: float = Field(5e-6, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of good responses in the loss.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of bad responses in the loss.")


def objective(config: KTOConfig) -> Expression:
    """KTO, with beta and the weights of good and bad responses."""
    weights = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
    return "kto", {"beta": config.beta, **weights}


METHOD = Method(
    name="kto",
    line="Kahneman-Tversky optimisation on single responses labelled good or bad.",
    title="Kahneman-Tversky optimisation",
    full="Kahneman-Tversky optimisation (KTO)",
    settings=KTOConfig,
    objective=objective,
    cost=Cost(1, reference=True, estimates=2.0),  # its KL term scores another prompt's response under both models
    unit="response",
    paper=Paper(
        "ethayarajh2024kto",
        "KTO: Model Alignment as Prospect Theoretic Optimization",
        "Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe",
        "2024",
        "2402.01306",
    ),
)
