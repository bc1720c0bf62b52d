"""SFT: supervised fine-tuning on the good responses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..method import Cost, Expression, Method, Paper
from ..training import PolicyConfig


class SFTConfig(PolicyConfig, frozen=True):
    """Supervised fine-tuning on the good responses."""

    method: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    lr: float = Field(2e-5, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")


def objective(config: SFTConfig) -> Expression:
    """Negative log-likelihood of the good responses, mean over tokens."""
    return "sft", {}


METHOD = Method(
    name="sft",
    line="Supervised fine-tuning on the good responses.",
    title="supervised fine-tuning",
    full="supervised fine-tuning",
    settings=SFTConfig,
    objective=objective,
    cost=Cost(1, reference=False),
    unit="token",
    usual_lr=((1e-6, 1e-4), (1e-5, 1e-3)),
    small_batches=True,
    over_optimises=False,
    next=lambda run, data: ["afzal", "train", "dpo", "--model", run, "--data", data],
    paper=Paper(
        "ouyang2022training",
        "Training language models to follow instructions with human feedback",
        "Ouyang, Long and Wu, Jeff and Jiang, Xu and Almeida, Diogo and Wainwright, Carroll and others",
        "2022",
        "2203.02155",
    ),
)
