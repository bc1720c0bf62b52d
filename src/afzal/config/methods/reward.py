"""A reward model: a scalar head on the model's trunk, trained on pairs, ties, soft labels, strengths and rankings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from afzal.errors import AfzalError

from ..method import Cost, Expression, Method, Paper
from ..sections import VIRTUAL, ScorerSettings
from ..training import TrainConfig


class RewardConfig(ScorerSettings, TrainConfig, frozen=True):
    """A reward model on pairs, ties, soft labels, strengths and rankings."""

    method: Literal["reward"] = Field("reward", description="Reward model.")
    objective: str = Field(
        "bradley_terry", description="The loss: bradley_terry, bradley_terry_margin, or another reward-model loss."
    )
    centering: float = Field(
        0.01, ge=0, description="Weight of (r_w + r_l)^2 in the loss, which pulls the mean score towards 0."
    )
    lr: float = Field(1e-5, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")

    @property
    def scorer(self) -> RewardConfig:
        return self

    @model_validator(mode="after")
    def _adapter_merges(self) -> Self:
        if self.adapter in VIRTUAL:
            raise ValueError(f"adapter {self.adapter} is for models that write; choose lora, dora, rslora or ia3")
        return self


def objective(config: RewardConfig) -> Expression:
    """The loss that the settings name.

    Raises:
        AfzalError: it is not a reward-model loss, or heads or centering have no effect on it.
    """
    return config.objective, _arguments(config)


def _arguments(config: RewardConfig) -> dict[str, float]:
    """``centering`` for the losses that have it; refuse anything but reward-model losses."""
    from afzal.objectives import REGISTRY  # loads torch

    losses = [o for o in REGISTRY.values() if o.scores == "reward"]
    loss = next((o for o in losses if o.name == config.objective), None)
    if loss is None:
        remedy = f"choose one of {', '.join(o.name for o in losses)}"
        raise AfzalError(f"objective {config.objective!r} is not a reward-model loss", remedy=remedy)
    if config.heads > 1 and loss.unit != "pair":
        raise AfzalError(
            f"objective {loss.name!r} trains a single head",
            why="heads of an ensemble differ by the weights of their pairs, and it has no pairs",
            remedy="use heads=1, or objective=bradley_terry",
        )
    if "centering" in loss.parameters:
        return {"centering": config.centering}
    if config.centering != type(config).model_fields["centering"].default:
        raise AfzalError(f"centering has no effect on {loss.name}", remedy="leave centering out")
    return {}


METHOD = Method(
    name="reward",
    line="A reward model on pairs, ties, soft labels and rankings: a scalar head on the model's trunk.",
    title="reward model",
    full="training a reward model",
    settings=RewardConfig,
    objective=objective,
    cost=Cost(2, reference=False, scalar=True),
    next=lambda run, data: ["afzal", "score", "--model", run, "--data", data, "--out", "scores.jsonl"],
    paper=Paper(
        "stiennon2020learning",
        "Learning to summarize from human feedback",
        "Stiennon, Nisan and Ouyang, Long and Wu, Jeff and Ziegler, Daniel M. and Lowe, Ryan and Voss, Chelsea and "
        "Radford, Alec and Amodei, Dario and Christiano, Paul",
        "2020",
        "2009.01325",
    ),
)
