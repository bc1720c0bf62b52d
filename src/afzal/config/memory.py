"""Settings that fit a run into memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Settings

TOKENS_PER_FORWARD = 8192
"""Default of ``tokens_per_forward``."""

Tokens = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""A number of tokens; ``auto`` is read as null, and the number is then measured."""


class MemorySettings(Settings, frozen=True, title="Model"):
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = Field(
        "auto",
        description="What is recomputed in the backward pass: none; selective keeps the results of matrix products; "
        "full keeps each block's input, for a third more work; auto is the first of these that fits into memory.",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="Device memory to plan the run with, in GB; default: four fifths of the free memory.",
    )
    offload: Literal["reference", "optimizer", "all"] | None = Field(
        None,
        description="Keep the frozen reference, or the optimizer's state and float32 weights, in the machine's memory "
        "instead of the GPU's.",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="Ranks that compute the same items together, each with a part of the columns or rows of every "
        "matrix (tensor parallelism, by the model's plan in transformers); must divide the number of ranks.",
    )
