"""The settings of ``afzal score``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from .base import Columns, Settings


class ScoreConfig(Settings, frozen=True):
    """Scores for the responses in a file."""

    model: str | None = Field(None, description="The reward model: a run folder, a model folder or a hub id.")
    policy: str | None = Field(
        None, description="A policy instead of a reward model: scores are beta x (its log-prob - the reference's)."
    )
    reference: str | None = Field(None, description="The policy's reference.")
    beta: float = Field(0.1, gt=0, description="The policy's beta.")
    data: str = Field(description="Responses to score, in any format that training data may have.")
    columns: Columns = Field({}, description="Field names by role, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the data's format; overrides detection.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer ones are cut.")
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    out: str | None = Field(None, description="JSONL file for the scores, one line per response.")

    @model_validator(mode="after")
    def _one_scorer(self) -> Self:
        if (self.model is None) == (self.policy is None):
            raise ValueError("give either model (a reward model) or policy and reference")
        if (self.policy is None) != (self.reference is None):
            raise ValueError("policy and reference belong together")
        if self.policy is None and self.beta != type(self).model_fields["beta"].default:
            raise ValueError("beta has no effect on a reward model")
        return self
