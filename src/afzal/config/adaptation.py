"""Settings of an adapter trained to adapt to a new task in a few steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Settings


class AdaptationSettings(Settings, frozen=True, title="Objective"):
    """Tasks, their support and query sets, and the inner steps."""

    order: Literal["fomaml", "reptile", "maml"] = Field(
        "fomaml",
        description="Outer gradient: fomaml (first order), maml (through the inner steps), or reptile.",
    )
    inner_steps: int = Field(3, ge=0, description="Steps of gradient descent on a task's support set.")
    inner_lr: float = Field(0.1, ge=0, description="Learning rate of the inner steps.")
    support_size: int = Field(8, ge=1, description="Items of a task used by its inner steps.")
    query_size: int = Field(
        16, ge=1, description="Items on other prompts of the task, on which the adapted policy is evaluated."
    )
