"""Seconds per update, from arithmetic and traffic under stated assumptions; nothing is measured.

Arithmetic runs at an assumed share of the peak, traffic at an assumed share of the links. Gathering and scattering
shards overlaps with the arithmetic; tensor-parallel sums do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from afzal.plan.flops import Lengths, Passes, scaled, update_flops
from afzal.plan.hardware import Device
from afzal.plan.job import (
    Job,
    Layout,
    compute_bytes,
    frozen_bytes,
    items_per_update,
    micro_batches,
    policy_parameters,
    tokens_at_once,
    tokens_per_update,
    trained_parameters,
    trained_policy,
    value_parameters,
)
from afzal.plan.rollouts import (
    drawing_flops,
    iteration,
    key_value_bytes,
    prompts_of_a_replica,
    rows_at_once,
    scoring_flops,
    sums_of_tensor_ranks,
)
from afzal.plan.shapes import embedding_parameters, parameters

OPTIMISER_TRAFFIC = 30.0  # bytes read and written per trained weight: weight, gradient, two moments, rounded copy


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Assumed shares of the vendor's figures: ``mfu`` of the matrix peak, ``link`` of the link bandwidth."""

    mfu: float
    link: float = 0.7


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one device receives per update, by kind, and the bytes per second of the links for each kind."""

    gather: float
    scatter: float
    replicas: float
    tensor: float
    shard_rate: float
    replica_rate: float
    tensor_rate: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the parts of a run.

    Of one update: arithmetic, shard traffic overlapping with it, tensor-parallel sums, gradient sums of replicas, and
    the optimiser's passes over its state. Of one iteration of a method that learns from rewards: sampling, then
    rewarding and scoring, then ``updates`` updates. ``before`` comes once, before the first update.
    """

    compute: float
    shards: float
    tensor: float
    replicas: float
    optimiser: float
    sampling: float
    scoring: float
    before: float
    updates: int

    @property
    def update(self) -> float:
        """Seconds of one update: shard traffic overlaps with arithmetic, everything else adds up."""
        return max(self.compute, self.shards) + self.tensor + self.replicas + self.optimiser

    @property
    def iteration(self) -> float:
        """Seconds of one iteration; of one update if the data are known beforehand."""
        return self.sampling + self.scoring + self.updates * self.update

    @property
    def hidden(self) -> bool:
        """Whether the shard traffic takes no longer than the arithmetic."""
        return self.shards <= self.compute


def update_lengths(job: Job) -> Lengths:
    """The length sums of one update."""
    return scaled(job.lengths, items_per_update(job))


def executed_flops(job: Job, layout: Layout) -> float:
    """Floating-point operations of one update over all devices, recomputation included."""
    lengths, recompute = update_lengths(job), int(layout.recompute == "full")
    total = update_flops(
        job.shape, lengths, Passes(_extra_forward_passes(job), recompute, job.rank), scalar_head=job.method.scalar
    )
    if job.has_value_model:
        total += update_flops(job.shape, lengths, Passes(0.0, recompute, job.rank), scalar_head=True)
    return total


def _extra_forward_passes(job: Job) -> float:
    """Forward passes without gradient per update; methods that learn from rewards make them before all updates."""
    return 0.0 if job.method.online else (job.reference == "live") + job.method.estimates


def useful_flops(job: Job) -> float:
    """The share of :func:`executed_flops` needed for the exact result, without recomputation."""
    return executed_flops(job, Layout())


def traffic(job: Job, layout: Layout, device: Device) -> Traffic:
    """Bytes per device and update."""
    passes, e = micro_batches(job, layout), compute_bytes(job)
    remote_share = (layout.shards - 1) / layout.shards
    trained = trained_parameters(job)
    policy = trained_policy(job)
    weight_bytes = (frozen_bytes(job) + e * policy if job.rank else policy_parameters(job) * e) / layout.tensor
    weight_bytes += e * value_parameters(job) / layout.tensor if job.has_value_model else 0.0
    # embedding and head stay gathered between a forward pass and its backward pass
    kept_gathered = (
        e * embedding_parameters(job.shape) * (1 if job.shape.tied or job.method.scalar else 2) / layout.tensor
    )
    gradient_bytes = 4.0 * trained / layout.tensor
    copies = layout.replicas // layout.shards
    rounds = 4 + 2 * (layout.recompute == "full") + 2 * _extra_forward_passes(job)
    rows = max(tokens_at_once(job, layout), tokens_per_update(job) / layout.replicas) * job.shape.width * e
    ring = 2 * (layout.tensor - 1) / layout.tensor
    return Traffic(
        gather=passes * ((2 + _extra_forward_passes(job)) * weight_bytes - kept_gathered) * remote_share,
        scatter=passes * gradient_bytes * remote_share,
        replicas=2 * (copies - 1) / copies * gradient_bytes / layout.shards,
        tensor=job.shape.layers * rounds * ring * rows,
        shard_rate=_rate(layout, device, layout.tensor, layout.shards),
        replica_rate=_rate(layout, device, layout.tensor * layout.shards, copies),
        tensor_rate=_rate(layout, device, 1, layout.tensor),
    )


def _rate(layout: Layout, device: Device, stride: int, members: int) -> float:
    """Bytes per second of a device in a group of ``members`` devices that are ``stride`` apart.

    A group that spans nodes uses the network cards of all its members in a node, unless the links inside are slower.
    """
    if stride * members <= layout.gpus:
        return device.intra
    return min(device.intra, max(1, layout.gpus // stride) * device.inter)


def times(job: Job, layout: Layout, device: Device, assumed: Assumptions) -> Times:
    """Seconds of one update, of one iteration, and of the passes before the first update."""
    peak = device.bf16 if job.dtype == "bf16" else device.fp32
    rate = layout.devices * peak * assumed.mfu
    busy_share = min(1.0, items_per_update(job) / layout.replicas)  # an item is not split over replicas
    speed = busy_share * rate
    bytes_moved = traffic(job, layout, device)
    trained = trained_parameters(job) / (layout.shards * layout.tensor)
    forward = update_flops(job.shape, job.lengths, Passes(forward=1.0)) - update_flops(job.shape, job.lengths, Passes())
    rollout_speed = rate * min(1.0, iteration(job).items / layout.replicas)
    tokens_read = iteration(job).tokens / layout.replicas if job.method.online else 0.0  # by every replica, in one pass
    models = 1 + (job.reference == "live") + job.has_value_model
    tensor_sums = sums_of_tensor_ranks(job, layout, tokens_read) / (bytes_moved.tensor_rate * assumed.link)
    return Times(
        compute=executed_flops(job, layout) / speed,
        shards=(bytes_moved.gather + bytes_moved.scatter) / (bytes_moved.shard_rate * assumed.link),
        tensor=bytes_moved.tensor / (bytes_moved.tensor_rate * assumed.link),
        replicas=bytes_moved.replicas / (bytes_moved.replica_rate * assumed.link),
        optimiser=OPTIMISER_TRAFFIC * trained / device.bandwidth,
        sampling=_sampling(job, layout, device, rollout_speed, assumed.link) + tensor_sums,
        scoring=scoring_flops(job) / rollout_speed + models * tensor_sums if job.method.online else 0.0,
        before=forward / speed if job.reference == "cached" else 0.0,
        updates=job.updates_per_iteration,
    )


def _sampling(job: Job, layout: Layout, device: Device, speed: float, link: float) -> float:
    """Seconds to sample one iteration's answers.

    Every decoding step reads all weights and the keys and values so far once, or computes for all rows, whichever takes
    longer. Sharded weights are gathered once, before the first token.
    """
    if not job.method.online:
        return 0.0
    lengths, rows, n = iteration(job), rows_at_once(job, layout), job.lengths.branches
    length = lengths.scored / (lengths.items * n)
    rounds = -(-prompts_of_a_replica(job, layout) * n // rows)
    weight_bytes = compute_bytes(job) * parameters(job.shape) / layout.tensor
    context = (
        lengths.tokens / lengths.items - n * length + n * length / 2
    )  # a prompt once, and half of each answer on average
    cached = key_value_bytes(job.shape, compute_bytes(job)) / layout.tensor * context * rows / n
    remote_share = (layout.shards - 1) / layout.shards
    gathered = weight_bytes * remote_share / (_rate(layout, device, layout.tensor, layout.shards) * link)
    return gathered + max(rounds * length * (weight_bytes + cached) / device.bandwidth, drawing_flops(job) / speed)


def updates(job: Job) -> int:
    """Number of updates of the entire run."""
    if job.method.online:
        return max(1, round(job.epochs * job.updates_per_iteration * job.lengths.items / job.batch_size))
    per_epoch = -(-job.lengths.items // job.batch_size)
    return max(1, round(job.epochs * per_epoch))
