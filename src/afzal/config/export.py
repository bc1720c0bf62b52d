"""The settings of ``afzal export``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .sections import HubSettings


class ExportConfig(HubSettings, frozen=True):
    """An adapter merged into a model that plain `transformers` loads."""

    model: str = Field(description="The adapter: a run folder, an adapter's folder or a hub id.")
    out: str = Field(description="Folder for the model; must not exist.")
    data: str | None = Field(
        None, description="Rows to compare log-probs on, in any format; default: rows of random tokens."
    )
    rows: int = Field(32, ge=1, description="Items of data to compare on.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the saved weights; auto is bf16 if the base model's is, else fp32.",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="Largest allowed difference in a token's log-prob, in nats; default 1e-3, with bf16 0.15.",
    )
    max_tokens: int = Field(
        1024, ge=2, description="Longest prompt + response of data, in tokens; longer ones are cut."
    )
    ollama: bool = Field(
        False,
        description="Also write a Modelfile for Ollama; for a model without an adapter, write only the Modelfile.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")

    @model_validator(mode="after")
    def _rows_are_used(self) -> Self:
        if self.data is None:
            self._refuse(("rows", "max_tokens"), "there is no data")
        self._refuse_hub_parts()
        return self
