"""Settings of how policies are measured on held-out prompts when several are compared."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from .base import Settings, split_names


class MeasuringSettings(Settings, frozen=True):
    """Prompts, seeds, and answers per prompt."""

    max_prompts: int | None = Field(
        None, ge=2, description="Use only this many prompts, from the first on; default: all."
    )
    seeds: list[int] = Field([0, 1, 2], description="Seeds; training and sampling are done once for each.")
    samples: int = Field(
        4, ge=2, description="Answers per prompt, seed and snapshot; win rates need 2, sampled independently."
    )
    sample_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the answers, and of both sides of the KL.")
    snapshots: int = Field(5, ge=1, description="Points along each training at which the policy is measured.")
    rows_per_batch: int = Field(128, ge=1, description="Answers sampled at a time; affects speed and memory.")

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        """Read ``0,1,2`` or a single number as a list."""
        if isinstance(value, int) and not isinstance(value, bool):
            return [value]
        try:
            return [int(part) for part in split_names(value)]
        except (TypeError, ValueError):
            raise ValueError("write it as [0, 1, 2]") from None

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("give different seeds of 0 or more, at least one")
        return value
