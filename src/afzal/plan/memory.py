"""Bytes per device of one update, term by term, at the moments of highest memory use.

The state (weights, masters, gradients, optimiser) is counted exactly; docs/scale.md compares all terms with measured
runs. In names and comments ``e`` is the number of bytes of a computed number.
"""

from __future__ import annotations

from dataclasses import dataclass

from afzal.plan.activations import activation_bytes, block_working_bytes, logit_bytes, merged_bytes, recomputed_bytes
from afzal.plan.hardware import Device
from afzal.plan.job import (
    Job,
    Layout,
    compute_bytes,
    frozen_block_bytes,
    frozen_bytes,
    micro_batches,
    policy_parameters,
    tokens_at_once,
    trained_parameters,
    trained_policy,
    trained_value,
    value_parameters,
)
from afzal.plan.rollouts import generation_bytes, scoring_bytes
from afzal.plan.shapes import adapter_parameters, block_parameters, embedding_parameters, parameters, reward_bytes

_MOMENTS = ("head", "last block", "first block", "embedding")  # along the backward pass
_ROLLOUT = ("generation", "scoring")
USABLE = 0.95  # plannable share of a device's memory; the allocator loses the rest to fragmentation


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of an update, and the bytes in use on one device at that moment, by term."""

    name: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        """Total bytes of all terms."""
        return sum(self.terms.values())


def peak(job: Job, layout: Layout, device: Device) -> Moment:
    """The moment of an update with the highest memory use."""
    return max(moments(job, layout, device), key=lambda moment: moment.total)


def loading(job: Job, layout: Layout, device: Device) -> Moment:
    """The moment before the first update.

    On one device the model is loaded in float32, and with bf16 the float32 masters are added. With several ranks each
    reads its own shard. A quantised model is loaded in its final format.
    """
    e, state = float(compute_bytes(job)), states(job, layout)
    overhead = {"overhead": device.reserve}
    if job.frozen != "dtype":
        return Moment("loading", {"weights": state["weights"]} | overhead)
    if layout.shards * layout.tensor > 1:
        ends = embedding_parameters(job.shape) * (1 if job.shape.tied or job.method.scalar else 2)
        gathered = e * (block_parameters(job.shape) + ends) / layout.tensor if layout.shards > 1 else 0.0
        terms = {"weights": state["weights"], "gathered": gathered}
        terms |= {name: state[name] for name in ("towers", "reference", "value model") if name in state}
        return Moment("loading", terms | overhead)
    terms = {
        "weights": 4.0 * policy_parameters(job),
        "master weights": 4.0 * trained_policy(job) if e == 2 else 0.0,
    }
    if job.shape.towers:
        terms["towers"] = 4.0 * job.shape.towers
    if job.has_value_model:
        terms["value model"] = state["value model"]
    return Moment("loading", terms | overhead)


def fits(job: Job, layout: Layout, device: Device) -> bool:
    """Whether memory use, loading included, stays within the plannable share of the memory."""
    largest = max(loading(job, layout, device).total, peak(job, layout, device).total)
    return largest <= USABLE * device.memory


def moments(job: Job, layout: Layout, device: Device) -> list[Moment]:
    """The moments of one backward pass, with activations and logits at its start and gradients at its end.

    A method that learns from rewards also has the generation of an iteration's answers and their scoring. In the first
    micro-batch of an update the gradients do not exist yet; in the later ones they do.
    """
    e, unsharded = compute_bytes(job), layout.shards == 1
    tokens = tokens_at_once(job, layout)
    activations, block = activation_bytes(job, layout, tokens, on_cpu=device.name == "cpu")
    working = block_working_bytes(job.shape, e, layout.tensor) * tokens + 2 / 3 * merged_bytes(job)  # of gate and up
    ends = (
        _end_weights(job) / layout.tensor if unsharded else 0.0
    )  # gradients of sharded weights are reduced as they appear
    gradients = 4.0 * trained_parameters(job) / (layout.shards * layout.tensor)
    accumulated = gradients if micro_batches(job, layout) > 1 else 0.0
    # the gradient of a tied matrix waits for its other half; an untied head's is already stored as float32
    tied, head = job.shape.tied and not job.method.scalar, 0.0 if job.method.scalar else ends
    waiting_bytes = e * head if tied else 0.0
    after_head = accumulated + (waiting_bytes if tied or accumulated else 4 * head)
    before_embedding = accumulated or gradients - 4 * ends
    embedding = gradients + (e * ends if tied or accumulated or e == 2 else 0.0)
    recomputed = recomputed_bytes(job, layout, tokens, on_cpu=device.name == "cpu")
    # the value model runs its backward pass first
    value_activations = _value_activations(job, layout, tokens, on_cpu=device.name == "cpu")
    terms_at = {
        "head": {
            "gradients": accumulated + e * head,
            "activations": activations + value_activations,
            "logits": logit_bytes(job, layout, tokens),
        },
        "last block": {"gradients": after_head, "activations": activations + working + recomputed},
        "first block": {"gradients": before_embedding + waiting_bytes, "activations": working + block},
        "embedding": {"gradients": embedding, "activations": 3.0 * e * job.shape.width * tokens},
    }
    steady = states(job, layout) | {"overhead": device.reserve}
    gathered = _gathered(job, layout)
    update = [Moment(name, steady | terms_at[name] | {"gathered": gathered[name]}) for name in _MOMENTS]
    if not job.method.online:
        return update
    rollout_terms = (generation_bytes(job, layout, device), scoring_bytes(job, layout, device))
    return [*update, *(Moment(name, steady | terms) for name, terms in zip(_ROLLOUT, rollout_terms, strict=True))]


def _value_activations(job: Job, layout: Layout, tokens: float, *, on_cpu: bool) -> float:
    """Bytes that the blocks of a separate value model keep."""
    if not job.has_value_model:
        return 0.0
    activations, _ = activation_bytes(job, layout, tokens, on_cpu=on_cpu)
    return activations + recomputed_bytes(job, layout, tokens, on_cpu=on_cpu)


def states(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes in use throughout: weights, float32 masters, optimiser, and the models other than the policy."""
    e, split, unsharded = compute_bytes(job), layout.shards * layout.tensor, layout.shards == 1
    trained = trained_policy(job)
    if job.rank:
        # sharded adapters are themselves the float32 masters, and are rounded when gathered
        weights = frozen_bytes(job) + (e if unsharded else 4) * trained
    else:
        weights = (e if unsharded else 4) * policy_parameters(job)
    terms = {
        "weights": weights / split,
        "master weights": 4.0 * trained / split if e == 2 and unsharded else 0.0,
        "optimiser": float(job.state_bytes) * trained_parameters(job) / split,
    }
    if job.shape.towers:
        terms["towers"] = float(e) * job.shape.towers / split
    if job.reference == "live" and not job.rank:
        reference_weights = parameters(job.shape) + job.shape.towers + job.shape.projection
        terms["reference"] = float(e) * reference_weights / split
    if job.has_value_model:
        n_trained = trained_value(job)
        bytes_each = (e + 4 if e == 2 else e) if unsharded else 4  # a working copy and a master, or a single copy
        terms["value model"] = float(e * (value_parameters(job) - n_trained) + bytes_each * n_trained) / split
    if job.reward is not None:  # in float32 too; its layers are sharded over all devices, and its matrices not cut
        terms["reward model"] = reward_bytes(job.reward) / split
    return terms


def _gathered(job: Job, layout: Layout) -> dict[str, float]:
    """Unsharded weights and gradients in use at each moment if both are sharded, as in FSDP2.

    A unit (a block, or the root with embedding and head) is gathered while the previous one computes. Its gradient
    appears in the computed number format, its weights are freed, and a float32 copy of the gradient is
    reduce-scattered, which may last until the next unit's gradient exists. The same holds for tensor parallelism alone.
    """
    e = float(compute_bytes(job))
    unit, end = (n / layout.tensor for n in (block_parameters(job.shape), embedding_parameters(job.shape)))
    ends = (1 if job.shape.tied else 2) * end  # the root's, gathered from end to end
    # a quantised block is gathered in its own format, and one of its matrices at a time is dequantised for use
    matrix = e * job.shape.width * job.shape.ff / layout.tensor if job.frozen != "dtype" else 0.0
    if layout.shards * layout.tensor == 1:
        return dict.fromkeys(_MOMENTS, matrix)
    encoders = e * (job.shape.towers + job.shape.projection)  # with the root too
    if job.rank:  # no large gradient: a forward pass needs most, with two buffers and the unit copied out of one
        adapters = e * adapter_parameters(job.shape, job.rank) / job.shape.layers
        unit_bytes = (frozen_block_bytes(job) + adapters) / layout.tensor
        first, blocks = unit_bytes + 2 * e * ends + encoders, 3 * unit_bytes + matrix + e * ends + encoders
        return dict(zip(_MOMENTS, (first, blocks, blocks - unit_bytes, first), strict=True))
    # their gradients are reduced together
    root_extra = encoders + (e * ends + encoders if job.reference == "live" else 0.0)  # and a reference's
    blocks = e * (ends + end) + (3 * e + 4) * unit + root_extra
    root = (e * (ends + end) + e * unit + root_extra, blocks, blocks, (e + 4) * ends + root_extra)
    return dict(zip(_MOMENTS, root, strict=True))


def _end_weights(job: Job) -> float:
    """Trained weights of the embedding; the output head, if there is one, has as many."""
    return 0.0 if job.rank else float(embedding_parameters(job.shape))
