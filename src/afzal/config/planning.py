"""The settings of ``afzal plan``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from .base import Columns, Settings
from .error_messages import suggestion
from .methods import METHODS

_LENGTHS = ("prompt_tokens", "response_tokens", "responses", "items")


class PlanConfig(Settings, frozen=True):
    """A training run to be sized before it starts: model, data and hardware."""

    model: str = Field(
        description="A built-in shape (llama-3.1-8b, qwen2.5-7b, ...), a folder with a config.json, or a hub id."
    )
    method: str = Field("dpo", description=f"What would be trained: {', '.join(METHODS)}.")
    data: str | None = Field(None, description="File to take the lengths from, instead of the numbers below.")
    columns: Columns = Field({}, description="Field names of the file by role, as chosen=good,prompt=question.")
    tokenizer: str | None = Field(
        None, description="Folder or hub id of the tokenizer to measure the file with; default: model."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response of the file, in tokens.")
    prompt_tokens: int = Field(256, ge=1, description="Tokens of a prompt.")
    response_tokens: int = Field(256, ge=1, description="Tokens of a response.")
    responses: int | None = Field(
        None,
        ge=1,
        description="Responses per prompt (n of methods that learn from rewards); default: the method's usual number.",
    )
    items: int = Field(10_000, ge=1, description="Prompts in the data set.")
    epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    batch_size: int = Field(
        64, ge=1, description="Items per update, over all devices; with rewards: prompts per iteration."
    )
    minibatches: int = Field(1, ge=1, description="With rewards: updates in each pass over an iteration's answers.")
    ppo_epochs: int | None = Field(
        None, ge=1, description="With rewards: passes over an iteration's answers; default: the method's default."
    )
    reward_model: str | None = Field(
        None,
        description="With rewards: the reward model, given like model, or the word function for a function or a "
        "server; default: a reward model of the policy's shape.",
    )
    value: Literal["own", "shared"] | None = Field(
        None, description="With ppo: a separate value model (default), or a head on the policy."
    )
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass and device.")
    sharing: Literal["shared", "unshared"] = Field(
        "shared", description="Compute a prompt once for all its responses, or once for each."
    )
    reference: Literal["live", "cached", "none"] | None = Field(
        None,
        description="The reference: a second model in memory (with adapters, the model without them), cached "
        "log-probs, or none.",
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Rank of adapters on every linear layer of the blocks; default: train all weights."
    )
    frozen_weights: Literal["dtype", "fp8", "nf4"] = Field(
        "dtype", description="Number format of the weights below the adapters."
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format of the forward pass; auto is fp32 on a CPU, else bf16."
    )
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field(
        "adamw", description="adamw keeps two float32 numbers per weight, rmsprop one, sgd none."
    )
    checkpointing: Literal["auto", "none", "selective", "full"] = Field(
        "auto",
        description="What is recomputed in the backward pass: none; selective keeps the results of matrix products and "
        "attention; full keeps each block's input; auto is the first of these that fits.",
    )
    hardware: str = Field("h100", description="The device: h100, h200, b200, a100-80, a100-40, l4, 4090 or cpu.")
    memory_gb: float | None = Field(None, gt=0, description="Memory of one device, in GB, in place of the table's.")
    tflops: float | None = Field(
        None, gt=0, description="Peak matrix throughput of one device in the dtype, in TFLOP/s."
    )
    bandwidth_gbs: float | None = Field(None, gt=0, description="Memory bandwidth of one device, in GB/s.")
    intra_gbs: float | None = Field(
        None, gt=0, description="Bandwidth inside a node, per device and direction, in GB/s."
    )
    inter_gbs: float | None = Field(
        None, gt=0, description="Bandwidth between nodes, per device and direction, in GB/s."
    )
    nodes: int | None = Field(None, ge=1, description="Number of nodes; default: as few as fit.")
    gpus: int | None = Field(None, ge=1, description="Devices per node; default: the usual number for this device.")
    shards: int | None = Field(None, ge=1, description="Devices (or tensor groups) that share one copy of the state.")
    tensor: int | None = Field(
        None,
        ge=1,
        description="Devices that split every matrix product (tensor_parallel of afzal train); default 1.",
    )
    mfu: float | None = Field(
        None, gt=0, le=1, description="Assumed share of the matrix peak; default 0.3, on cpu 0.45."
    )
    link: float = Field(0.7, gt=0, le=1, description="Assumed share of the links' bandwidth.")
    price: float | None = Field(None, ge=0, description="Price of one device-hour; gives the cost.")

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"wanted: one of {', '.join(METHODS)}{suggestion(value, list(METHODS))}")
        return value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """Refuse settings that would be ignored."""
        cost = METHODS[self.method].cost
        if self.data is not None:
            lengths = ("prompt_tokens", "response_tokens", "items") if cost.online else _LENGTHS
            self._refuse(lengths, "the lengths come from data")
        else:
            self._refuse(("columns", "tokenizer", "max_tokens"), "there is no data")
        if self.lora_rank is None:
            self._refuse(("frozen_weights",), "without lora_rank all weights train")
        if not cost.online:
            self._refuse(
                ("minibatches", "ppo_epochs", "reward_model"), f"{self.method} learns from data, not from rewards"
            )
        if not cost.value:
            self._refuse(("value",), f"{self.method} trains no value model")
        if not cost.reference:
            self._refuse(("reference",), f"{self.method} has no reference")
        if self.nodes == self.gpus == 1:
            self._refuse(("intra_gbs", "inter_gbs", "link"), "one device has no links")
        return self

    @model_validator(mode="after")
    def _as_trained(self) -> Self:
        """Refuse what ``afzal train`` refuses for methods that learn from rewards."""
        cost = METHODS[self.method].cost
        if not cost.online:
            return self
        if self.reference not in (None, "live"):
            raise ValueError(
                f"reference cannot be {self.reference}: {self.method} scores its answers under a reference as it runs"
            )
        if self.minibatches > self.batch_size:
            raise ValueError(
                f"{self.minibatches} minibatches need at least as many prompts, and batch_size is {self.batch_size}"
            )
        if cost.value and self.value != "shared" and self.frozen_weights != "dtype":
            raise ValueError("frozen_weights: a quantised model cannot be copied for a value model; use value=shared")
        return self
