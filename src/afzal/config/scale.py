"""Settings of how a run fits into memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Settings

TOKENS_PER_FORWARD = 8192
"""What ``tokens_per_forward`` is unless it is given."""

Tokens = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]
"""A number of tokens; ``auto``, which is null, leaves it to be measured."""


class MemorySettings(Settings, frozen=True, title="Model"):
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = Field(
        "auto",
        description="What is recomputed in the backward pass: none; selective keeps the results of matrix products; "
        "full keeps each block's input, for a third more work; auto is the first of these that fits into memory.",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="Memory of the device that the run plans with, in GB; default: four fifths of what is free.",
    )
    offload: Literal["reference", "optimizer", "all"] | None = Field(
        None,
        description="Keep the frozen reference, or the optimizer's state and float32 weights, in the machine's memory "
        "and not in that of the GPU.",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="Ranks that compute the same items together, each with some columns or rows of every matrix "
        "(tensor parallelism, by the model's own plan in transformers); divides the number of ranks.",
    )
