"""Settings of rollouts, and of a value model that trains beside the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


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
    temperature: float = Field(1.0, gt=0, description="Temperature at which the answers are drawn and scored.")
    missing_eos_penalty: float | None = Field(
        None, description="An answer that does not end within sample_tokens is worth minus this; default: its reward."
    )
    kl_coef: float = Field(
        0.05, ge=0, description="Strength of the pull to the reference, in rewards per nat; larger stays nearer to it."
    )
    clip: float = Field(0.2, gt=0, description="How far pi / pi_old may go from 1 and still have a gradient.")
    clip_high: float = Field(0.0, ge=0, description="The same upwards; 0 takes clip.")
    eval_prompts: int = Field(
        256, ge=1, description="Held-out prompts to answer at each evaluation, for reward and KL: the first ones."
    )


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
