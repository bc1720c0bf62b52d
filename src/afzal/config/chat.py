"""The settings of ``afzal chat``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Names, Settings

_PAGE = ("host", "port", "names", "headless")
_BLIND = ("annotator", "out")


class ChatConfig(Settings, frozen=True):
    """A conversation with one model or two."""

    model: str = Field(description="The model to talk to: a run folder, a model folder or a hub id.")
    against: str | None = Field(
        None, description="The model to compare it with; default: the one the run started from, if it still exists."
    )
    alone: bool = Field(False, description="Talk to the model alone.")
    blind: bool = Field(False, description="Show the answers in random order, without names, and ask which is better.")
    out: str | None = Field(None, description="Folder for the votes; default: the model's name with .chat.")
    annotator: str = Field("me", min_length=1, max_length=60, description="Name under which the votes are recorded.")
    system: str = Field("", description="A system prompt.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, ge=0, description="Temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens with this total probability.")
    top_k: int | None = Field(None, ge=1, description="Sample from this many of the likeliest tokens.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the sampling.")
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    page: bool = Field(False, description="Talk on a page in the browser instead of the terminal.")
    host: str = Field(
        "127.0.0.1", description="Address of the page; the default, loopback, is reachable from this machine only."
    )
    port: int = Field(0, ge=0, le=65535, description="Port of the page; 0 picks a free one.")
    names: Names = Field(None, description="Additional names to accept in the Host header, such as a proxy's.")
    headless: bool = Field(False, description="Print the address of the page and open no browser.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.temperature == 0 and (self.top_p < 1 or self.top_k is not None):
            raise ValueError("top_p and top_k have no effect at temperature 0")
        if self.alone:
            self._refuse(("against", "blind"), "the model answers alone")
        if not self.page:
            self._refuse(_PAGE, "only page=true opens a page")
        if not self.blind:
            self._refuse(_BLIND, "votes are recorded only with blind=true")
        return self
