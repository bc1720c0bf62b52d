"""Settings of rollouts, and of a value model that trains alongside the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


class RolloutSettings(Settings, frozen=True, title="Rollouts"):
    """How answers are sampled, rewarded and trained on."""

    reward: str = Field(
        description="Source of rewards: a reward model, or module:function or file.py:function of prompt and answer."
    )
    n: int = Field(1, ge=1, description="Answers per prompt and iteration.")
    iterations: int | None = Field(
        None, ge=1, description="Rounds of sampling answers and training on them; default: epochs over the prompts."
    )
    ppo_epochs: int = Field(1, ge=1, description="Passes over the answers of an iteration.")
    minibatches: int = Field(1, ge=1, description="Updates per pass over an iteration's answers.")
    temperature: float = Field(
        1.0, gt=0, description="Temperature at which the answers are sampled and their log-probs taken."
    )
    missing_eos_penalty: float | None = Field(
        None, description="Answers that do not end within sample_tokens get minus this; default: their reward."
    )
    kl_coef: float = Field(
        0.05, ge=0, description="Strength of the KL penalty, in rewards per nat; larger stays closer to the reference."
    )
    clip: float = Field(0.2, gt=0, description="How far pi / pi_old may be from 1 before its gradient is cut off.")
    clip_high: float = Field(0.0, ge=0, description="The same for ratios above 1; 0 means clip.")
    eval_prompts: int = Field(
        256, ge=1, description="Held-out prompts to answer at each evaluation, for reward and KL, from the first on."
    )


class ValueSettings(Settings, frozen=True, title="Objective"):
    """A value model that trains alongside the policy."""

    value: Literal["own", "shared"] = Field(
        "own", description="The value model: a copy of the policy with its own head, or a head on the policy."
    )
    value_model: str | None = Field(
        None, description="A reward model to start the value model from; default: the policy, with a zero head."
    )
    value_lr: float | None = Field(
        None, gt=0, description="Peak learning rate of the value model (of its head, if shared); default twice lr."
    )
    vf_coef: float = Field(0.1, gt=0, description="Weight of the value model's loss.")
    value_clip: float = Field(
        0.2, gt=0, description="How far a value may be from its old one before its gradient is cut off, in rewards."
    )
