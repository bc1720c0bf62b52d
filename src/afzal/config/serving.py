"""The settings of a server that writes answers: a YAML file that may be given in place of a model folder."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .base import Settings

POLICY = "{policy}"
"""Placeholder in ``model`` and ``reload`` for the folder whose weights are to answer."""


class ServerConfig(Settings, frozen=True):
    """An OpenAI-compatible server that answers for a model."""

    kind: Literal["openai", "vllm", "transformers"] = Field(
        "openai",
        description="openai sends only what every such server knows; vllm and transformers (transformers serve) also "
        "get the ids that end an answer, top_k and min_new_tokens.",
    )
    url: str = Field(description="Address of the server, up to and including /v1.")
    model: str = Field(description="The model's name at the server; {policy} is replaced by the model's folder.")
    folder: str | None = Field(
        None,
        description="The folder or hub id of the same model, whose tokenizer says where answers end; kind openai "
        "can do without.",
    )
    key_env: str | None = Field(None, description="The environment variable that holds the server's key.")
    reload: list[str] | None = Field(
        None,
        min_length=1,
        description="For afzal iterate and compare: a program and its arguments that make the server load the weights "
        "of {policy}. It runs before each round or policy is sampled.",
    )
    timeout: float = Field(600.0, gt=0, description="Timeout in seconds for one request.")
    attempts: int = Field(5, ge=1, description="Attempts per request before the command stops.")
    concurrency: int = Field(8, ge=1, description="Concurrent requests; 1 for kind transformers.")

    @model_validator(mode="before")
    @classmethod
    def _one_stream(cls, values: Any) -> Any:
        serial = isinstance(values, dict) and values.get("kind") == "transformers"
        if serial and values.setdefault("concurrency", 1) != 1:
            raise ValueError(
                "concurrency must be 1 with kind transformers: its requests share one stream of random numbers, so "
                "a seed would not fix the answers"
            )
        return values

    @model_validator(mode="after")
    def _reloads_something(self) -> Self:
        if self.reload is not None and not any(POLICY in word for word in self.reload):
            raise ValueError("reload must name {policy}, the folder whose weights the server is to load")
        return self

    def named(self, policy: str) -> str:
        """The model's name at the server when it answers for the folder ``policy``."""
        return self.model.replace(POLICY, policy)


def is_server(model: str) -> bool:
    """Whether ``model`` names a server's YAML file, not a model."""
    return model.endswith((".yaml", ".yml"))
