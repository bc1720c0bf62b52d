"""The settings of ``afzal generate``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Settings
from .serving import is_server


class GenerateConfig(Settings, frozen=True):
    """A model's answers to one prompt or to a file of prompts."""

    model: str = Field(
        description="The model: a run folder, a model folder or a hub id; or the YAML file of a server that answers."
    )
    prompt: str | None = Field(None, description="One prompt, as text.")
    prompts: str | None = Field(None, description="A file of prompts, in any format that training data may have.")
    n: int = Field(1, ge=1, description="Answers per prompt.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="Tokens before an answer may end.")
    temperature: float = Field(1.0, ge=0, description="Temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens with this total probability.")
    top_k: int | None = Field(None, ge=1, description="Sample from this many of the likeliest tokens.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the sampling.")
    batch_size: int = Field(
        64, ge=1, description="Answers sampled at a time; affects speed and memory, not the answers."
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    engine: Literal["auto", "stock", "vllm"] = Field(
        "auto",
        description="auto reads a prompt once for all its answers if that is exact; stock reads it for each one; "
        "vllm has been tested with a stand-in only, never with vLLM itself.",
    )
    out: str | None = Field(None, description="JSONL file for the answers; default: print them.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either prompt (a text) or prompts (a file)")
        if self.temperature == 0 and (self.n > 1 or self.top_p < 1 or self.top_k is not None):
            raise ValueError("n, top_p and top_k have no effect at temperature 0")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is above max_new_tokens")
        if is_server(self.model):
            self._refuse(("engine", "dtype", "batch_size"), "a server writes the answers")
        return self
