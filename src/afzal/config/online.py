"""What the methods share that learn from rewards of the policy's own answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Settings
from .training import LiveReferenceConfig

_CLIPS = ("clip", "clip_high", "value_clip")


class RolloutSettings(Settings, frozen=True, title="Rollouts"):
    """What the policy writes, what it is worth, and how often it is learned from."""

    reward: str = Field(
        description="What answers are worth: a reward model, or module:function or file.py:function of two texts."
    )
    n: int = Field(1, ge=1, description="Answers to each prompt of an iteration.")
    iterations: int | None = Field(
        None, ge=1, description="Rounds of writing answers and learning from them; default: epochs over the prompts."
    )
    ppo_epochs: int = Field(1, ge=1, description="Passes over the answers of an iteration.")
    minibatches: int = Field(1, ge=1, description="Updates in each of these passes.")
    temperature: float = Field(
        1.0, gt=0, description="Temperature of the answers learned from, in writing and in scoring alike."
    )
    missing_eos_penalty: float | None = Field(
        None, description="An answer that does not end within sample_tokens is worth minus this; default: its reward."
    )
    kl_coef: float = Field(
        0.05, ge=0, description="Strength of the pull to the reference, in rewards per nat; larger stays nearer to it."
    )
    clip: float = Field(0.2, gt=0, description="How far pi / pi_old may go from 1 and still have a gradient.")
    clip_high: float = Field(0.0, ge=0, description="The same upwards, if it should differ from clip.")
    eval_prompts: int = Field(
        256, ge=1, description="Held-out prompts to answer at each evaluation, for reward and KL; the first by order."
    )


class OnlineConfig(RolloutSettings, LiveReferenceConfig, frozen=True):
    """Methods that learn from the rewards of the policy's own answers; of the data only the prompts are used."""

    batch_size: int = Field(64, ge=1, description="Prompts per iteration.")
    sample_prompts: int = Field(8, ge=0, description="Held-out prompts whose answers are kept at each evaluation.")
    sample_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")  # pyright: ignore[reportIncompatibleVariableOverride] - prompts alone ask for no length

    @property
    def rollouts(self) -> OnlineConfig:
        return self

    @property
    def penalty(self) -> PenaltyConfig | None:
        """Of a KL penalty that stands in the reward; None where the pull to the reference is a term of the loss."""
        return None

    @model_validator(mode="after")
    def _online_parts(self) -> Self:
        if self.reference == "cached":
            raise ValueError("reference cannot be cached: the answers are not known before they are written")
        if self.adapter_from is not None:
            raise ValueError(
                "adapter_from is another policy than the reference, and the KL penalty would pull it back: "
                "name the adapter as the model, which is then the reference"
            )
        if self.iterations is not None:
            self._refuse(("epochs",), "iterations says how long the run is")
        if self.batch_size < self.minibatches:
            raise ValueError(
                f"{self.minibatches} minibatches need as many prompts, and batch_size is {self.batch_size}"
            )
        if self.ppo_epochs * self.minibatches == 1:
            clips = [key for key in _CLIPS if key in type(self).model_fields]
            self._refuse(clips, "an iteration makes one update, by the policy that wrote its answers")
        return self


class PenaltyConfig(OnlineConfig, frozen=True):
    """Methods whose rewards hold the KL penalty, whose strength may move."""

    kl_target: float | None = Field(
        None, gt=0, description="Move kl_coef towards the strength that gives this KL, in nats per answer."
    )
    kl_horizon: float = Field(
        10_000.0, gt=0, description="Answers in which kl_coef may change by a fifth; larger is slower."
    )

    @property
    def penalty(self) -> PenaltyConfig:
        return self

    @model_validator(mode="after")
    def _controller(self) -> Self:
        if self.kl_target is None:
            self._refuse(("kl_horizon",), "kl_target is not set")
        elif self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from")
        return self


class ValueSettings(Settings, frozen=True, title="Objective"):
    """A value model that trains beside the policy."""

    value: Literal["own", "shared"] = Field(
        "own", description="The value model: a copy of the policy with its own head, or a head on the policy."
    )
    value_model: str | None = Field(
        None, description="A reward model to start the value model from; default: the policy, and a head of zeros."
    )
    value_lr: float | None = Field(
        None, gt=0, description="Peak learning rate of the value model (of its head, when shared); default twice lr."
    )
    vf_coef: float = Field(0.1, gt=0, description="Weight of the value model's loss.")
    value_clip: float = Field(
        0.2, gt=0, description="How far a value may go from its old one and still have a gradient, in rewards."
    )
