"""Inverse reinforcement learning: the reward under which demonstrations are optimal, given a pull to the reference
that drew the samples. The result is a reward model like any other."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..method import Cost, Expression, Method, Paper
from ..sections import VIRTUAL, DemonstrationSettings, ScorerSettings
from ..training import TrainConfig

Estimator = Literal["ranking_nce", "maxent_irl", "airl", "demonstration_pairs"]


class IRLConfig(DemonstrationSettings, ScorerSettings, TrainConfig, frozen=True):
    """A reward model inferred from demonstrations, against samples of the reference."""

    method: Literal["irl"] = Field("irl", description="Inverse reinforcement learning.")
    objective: Estimator = Field(
        "ranking_nce",
        description="The estimator: ranking_nce, maxent_irl (importance weights over the samples), airl (a "
        "discriminator) or demonstration_pairs (SPIN in one step).",
    )
    beta: float = Field(
        1.0,
        gt=0,
        description="Strength of the pull to the reference in the demonstrator's objective; sets the unit of the "
        "reward.",
    )
    lr: float = Field(1e-5, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")

    @property
    def scorer(self) -> IRLConfig:
        return self

    @property
    def demonstrated(self) -> IRLConfig:
        return self

    @property
    def inferred_at(self) -> float:
        return self.beta

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.adapter in VIRTUAL:
            raise ValueError(f"adapter {self.adapter} is for models that write; choose lora, dora, rslora or ia3")
        if self.heads > 1 and self.objective != "demonstration_pairs":
            raise ValueError(
                f"objective {self.objective} trains a single head: heads of an ensemble differ by the weights of their "
                "pairs; use heads=1, or objective=demonstration_pairs"
            )
        return self


def objective(config: IRLConfig) -> Expression:
    """The estimator, at the demonstrator's beta."""
    return config.objective, {"beta": config.beta}


METHOD = Method(
    name="irl",
    line="A reward model inferred from demonstrations, against samples of the reference (inverse RL).",
    title="inverse reinforcement learning",
    full="inverse reinforcement learning: a reward model from demonstrations",
    settings=IRLConfig,
    objective=objective,
    cost=Cost(9, reference=False, scalar=True),
    unit="group",
    next=lambda run, data: ["afzal", "score", "--model", run, "--data", data, "--out", "scores.jsonl"],
    paper=Paper(
        "finn2016guided",
        "Guided Cost Learning: Deep Inverse Optimal Control via Policy Optimization",
        "Finn, Chelsea and Levine, Sergey and Abbeel, Pieter",
        "2016",
        "1603.00448",
    ),
)
