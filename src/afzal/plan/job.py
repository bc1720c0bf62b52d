"""The inputs of a plan: the job (model, method and data), and the layout (machines and how they share the work)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from afzal import config
from afzal.plan.flops import Lengths
from afzal.plan.shapes import Shape, adapter_parameters, block_matrices, block_parameters, parameters, trunk_parameters

Dtype = Literal["fp32", "bf16"]
Format = Literal["dtype", "fp8", "nf4"]
Reference = Literal["none", "live", "cached"]
Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")

# Bytes per weight of a block's matrices; nf4 is 4 bits and a scale per 64 weights, itself in 8 bits.
_FORMAT_BYTES = {"fp8": 1.0, "nf4": 0.5 + 1 / 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(config.Cost):
    """A method's name and costs."""

    name: str


METHODS: dict[str, Method] = {name: Method(name=name, **asdict(method.cost)) for name, method in config.METHODS.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """A training run without its machines.

    Attributes:
        lengths: sums over all items of one epoch.
        batch_size: items per update over all devices; per iteration for a method that learns from rewards.
        rank: rank of LoRA adapters, 0 if all weights train.
        frozen: number format of the weights that do not train, with ``rank``; ``dtype`` is the computation's format.
        state_bytes: optimiser bytes per trained weight: 8 for AdamW, 4 for RMSprop.
        value: whether the value model, if the method has one, is a copy of the policy or a head on it.
        reward: the reward model of a method that learns from rewards; None if a function or a server gives them.
        ppo_epochs, minibatches: passes over the answers of an iteration, and updates per pass.
    """

    shape: Shape
    method: Method
    lengths: Lengths
    batch_size: int = 64
    epochs: float = 1.0
    reference: Reference = "live"
    rank: int = 0
    dtype: Dtype = "bf16"
    frozen: Format = "dtype"
    state_bytes: int = 8
    shared: bool = True
    value: Literal["own", "shared"] = "own"
    reward: Shape | None = None
    ppo_epochs: int = 1
    minibatches: int = 1

    @property
    def has_value_model(self) -> bool:
        """Whether a separate value model trains alongside the policy."""
        return self.method.value and self.value == "own"

    @property
    def updates_per_iteration(self) -> int:
        """Updates per iteration; 1 for a method whose data are known beforehand."""
        return self.ppo_epochs * self.minibatches


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share a run, as PyTorch's FSDP2 and tensor parallelism do it.

    Attributes:
        gpus: devices per node.
        shards: devices (or tensor-parallel groups) over which weights, gradients and optimiser are sharded; 1: not.
        tensor: devices over which every matrix product is split.
        recompute: what the backward pass recomputes: nothing, everything but matrix products and fused attention, or
            everything but each block's input.
        tokens: tokens per forward pass of a tensor-parallel group.
    """

    nodes: int = 1
    gpus: int = 1
    shards: int = 1
    tensor: int = 1
    recompute: Recompute = "none"
    tokens: int = 8192

    @property
    def devices(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.gpus

    @property
    def replicas(self) -> int:
        """Tensor-parallel groups, each with its own micro-batches."""
        return self.devices // self.tensor


def compute_bytes(job: Job) -> int:
    """Bytes of one number of the forward pass."""
    return 2 if job.dtype == "bf16" else 4


def policy_parameters(job: Job) -> int:
    """Weights of the trained model without adapters and towers; a scalar head may replace the vocabulary head."""
    text = trunk_parameters(job.shape) + job.shape.width if job.method.scalar else parameters(job.shape)
    return text + job.shape.projection


def trained_parameters(job: Job) -> int:
    """Weights that the optimiser updates, including a value model's."""
    return trained_policy(job) + trained_value(job)


def trained_policy(job: Job) -> int:
    """The share of :func:`trained_parameters` in the policy, or in the only model."""
    return adapter_parameters(job.shape, job.rank) if job.rank else policy_parameters(job)


def trained_value(job: Job) -> int:
    """The share of :func:`trained_parameters` in the value model: its trunk or its adapters, and its head."""
    if not job.method.value:
        return 0
    full = trunk_parameters(job.shape) + job.shape.projection
    trunk = adapter_parameters(job.shape, job.rank) if job.rank else full
    return (trunk if job.has_value_model else 0) + job.shape.width


def value_parameters(job: Job) -> int:
    """Weights of the value model, frozen ones included; a copy of the policy includes the unused output head."""
    if not job.has_value_model:
        return trained_value(job)
    further = job.shape.towers + job.shape.projection + job.shape.width
    return parameters(job.shape) + (adapter_parameters(job.shape, job.rank) if job.rank else 0) + further


def frozen_bytes(job: Job) -> float:
    """Bytes of the policy's weights if only adapters train; the matrices of the blocks have their own number format."""
    ends = policy_parameters(job) - job.shape.layers * block_parameters(job.shape)
    return job.shape.layers * frozen_block_bytes(job) + ends * compute_bytes(job)


def frozen_block_bytes(job: Job) -> float:
    """The share of :func:`frozen_bytes` in one block."""
    e, matrices = compute_bytes(job), block_matrices(job.shape)
    return matrices * _FORMAT_BYTES.get(job.frozen, e) + (block_parameters(job.shape) - matrices) * e


def items_per_update(job: Job) -> float:
    """Items of one update over all devices."""
    return min(job.batch_size, job.lengths.items) / job.minibatches


def tokens_per_update(job: Job) -> float:
    """Tokens of one update over all devices, one forward pass each."""
    return job.lengths.tokens / job.lengths.items * items_per_update(job)


def tokens_at_once(job: Job, layout: Layout) -> float:
    """Tokens of one forward pass: the budget, or a replica's tokens per update if those are fewer; at least those of
    the largest item."""
    return tokens_per_pass(job, layout, tokens_per_update(job))


def tokens_per_pass(job: Job, layout: Layout, tokens: float) -> float:
    """Tokens of one forward pass if all devices together have ``tokens`` to read."""
    return max(job.lengths.longest, min(layout.tokens, tokens / layout.replicas))


def micro_batches(job: Job, layout: Layout) -> int:
    """Forward passes with gradient of one replica in one update, at least 1."""
    return max(1, math.ceil(tokens_per_update(job) / layout.replicas / tokens_at_once(job, layout) - 1e-9))
