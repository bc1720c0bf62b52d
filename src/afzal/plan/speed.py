"""Seconds per update: arithmetic against traffic, both by stated assumptions, none of it a measurement.

Arithmetic runs at an assumed share of the peak. Traffic runs at an assumed share of the links. Gathering and scattering
shards overlaps with the arithmetic; tensor-parallel sums do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from afzal.plan.hardware import Device
from afzal.plan.job import (
    Job,
    Layout,
    compute_bytes,
    frozen_bytes,
    micro_batches,
    policy_parameters,
    tokens_at_once,
    tokens_per_update,
    trained_parameters,
)
from afzal.plan.shapes import parameters
from afzal.plan.work import Lengths, Passes, body_weights, update_flops

OPTIMISER_TRAFFIC = 30.0  # bytes read and written per trained weight: weight, gradient, two moments, rounded copy


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Shares of what the vendor states: ``mfu`` of the matrix peak, ``link`` of the links."""

    mfu: float
    link: float = 0.7


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one device receives in one update, by kind, and the bytes per second of its links for each."""

    gather: float
    scatter: float
    replicas: float
    tensor: float
    shard_rate: float
    replica_rate: float
    tensor_rate: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one update: arithmetic, shard traffic beside it, tensor-parallel sums, gradient sums of replicas,
    the optimiser's passes over its state, sampled answers; and of the whole job what comes before the first update."""

    compute: float
    shards: float
    tensor: float
    replicas: float
    optimiser: float
    sampling: float
    before: float

    @property
    def update(self) -> float:
        """Seconds of one update: the traffic of shards hides behind arithmetic, everything else adds up."""
        return max(self.compute, self.shards) + self.tensor + self.replicas + self.optimiser + self.sampling

    @property
    def hidden(self) -> bool:
        """Whether the shard traffic takes no longer than the arithmetic beside it."""
        return self.shards <= self.compute


def update_lengths(job: Job) -> Lengths:
    """The lengths of one update, as sums."""
    share = min(job.batch_size, job.lengths.items) / job.lengths.items
    found = job.lengths
    sums = {name: getattr(found, name) * share for name in ("tokens", "scored", "keys", "products")}
    return replace(found, items=min(job.batch_size, found.items), **sums)


def executed_flops(job: Job, layout: Layout) -> float:
    """Floating-point operations of one update over all devices, recomputation included."""
    found = update_lengths(job)
    forward = (job.reference == "live") + job.method.estimates
    passes = Passes(forward, int(layout.recompute), job.rank)
    total = update_flops(job.shape, found, passes, scalar_head=job.method.scalar)
    if job.method.value:
        total += update_flops(job.shape, found, Passes(0.0, int(layout.recompute), job.rank), scalar_head=True)
    return total


def useful_flops(job: Job) -> float:
    """Of :func:`executed_flops`, those that the exact result cannot do without: nothing is computed twice."""
    return executed_flops(job, Layout(recompute=False))


def traffic(job: Job, layout: Layout, device: Device) -> Traffic:
    """Bytes per device and update."""
    passes, e = micro_batches(job, layout), compute_bytes(job)
    outside = (layout.shards - 1) / layout.shards
    trained = trained_parameters(job)
    whole = (frozen_bytes(job) + e * trained if job.rank else policy_parameters(job) * e) / layout.tensor
    moved = 4.0 * trained / layout.tensor
    copies = layout.replicas // layout.shards
    rounds = 4 + 2 * layout.recompute + 2 * ((job.reference == "live") + job.method.estimates)
    rows = max(tokens_at_once(job, layout), tokens_per_update(job) / layout.replicas) * job.shape.width * e
    ring = 2 * (layout.tensor - 1) / layout.tensor
    return Traffic(
        gather=passes * (2 + (job.reference == "live") + job.method.estimates) * whole * outside,
        scatter=passes * moved * outside,
        replicas=2 * (copies - 1) / copies * moved / layout.shards,
        tensor=job.shape.layers * rounds * ring * rows,
        shard_rate=_rate(layout, device, layout.tensor, layout.shards),
        replica_rate=_rate(layout, device, layout.tensor * layout.shards, copies),
        tensor_rate=_rate(layout, device, 1, layout.tensor),
    )


def _rate(layout: Layout, device: Device, stride: int, members: int) -> float:
    """Bytes per second of a device in a group of ``members`` that stand ``stride`` apart.

    A group that leaves its node goes through the cards of all its members there, unless the links inside are slower.
    """
    if stride * members <= layout.gpus:
        return device.intra
    return min(device.intra, max(1, layout.gpus // stride) * device.inter)


def times(job: Job, layout: Layout, device: Device, assumed: Assumptions) -> Times:
    """Seconds of one update, and of the passes before the first."""
    peak = device.bf16 if job.dtype == "bf16" else device.fp32
    busy = min(1.0, min(job.batch_size, job.lengths.items) / layout.replicas)  # an item is not divided over replicas
    speed = layout.devices * busy * peak * assumed.mfu
    moved = traffic(job, layout, device)
    trained = trained_parameters(job) / (layout.shards * layout.tensor)
    forward = update_flops(job.shape, job.lengths, Passes(forward=1.0)) - update_flops(job.shape, job.lengths, Passes())
    return Times(
        compute=executed_flops(job, layout) / speed,
        shards=(moved.gather + moved.scatter) / (moved.shard_rate * assumed.link),
        tensor=moved.tensor / (moved.tensor_rate * assumed.link),
        replicas=moved.replicas / (moved.replica_rate * assumed.link),
        optimiser=OPTIMISER_TRAFFIC * trained / device.bandwidth,
        sampling=_sampling(job, layout, device, speed, assumed.link),
        before=forward / speed if job.reference == "cached" else 0.0,
    )


def _sampling(job: Job, layout: Layout, device: Device, speed: float, link: float) -> float:
    """Seconds to draw one update's answers: every token reads all weights once, or computes for all rows at once.

    Weights in pieces are gathered for every token before they are read.
    """
    if not job.method.online:
        return 0.0
    found = update_lengths(job)
    answers = found.items * job.method.responses
    steps = found.scored / answers
    whole = compute_bytes(job) * parameters(job.shape) / layout.tensor
    outside = (layout.shards - 1) / layout.shards
    gathered = whole * outside / (_rate(layout, device, layout.tensor, layout.shards) * link)
    arithmetic = 2.0 * body_weights(job.shape) * answers / speed
    return steps * max(whole / device.bandwidth, gathered, arithmetic)


def updates(job: Job) -> int:
    """Updates of the whole run."""
    per_epoch = -(-job.lengths.items // job.batch_size)
    return max(1, round(job.epochs * per_epoch))
