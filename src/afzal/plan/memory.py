"""Bytes per device of one update, term by term, at the moments when most is alive.

The state (weights, masters, gradients, optimiser) is counted exactly; docs/scale.md says how far all terms agree with
measured runs. In names and comments ``e`` is the bytes of a computed number.
"""

from __future__ import annotations

from dataclasses import dataclass

from afzal.plan.activations import activation_bytes, again_bytes, block_working_bytes, logit_bytes, merged_bytes
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
USABLE = 0.95  # share of a device's memory that is planned with; the allocator loses the rest to fragments


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of an update and the bytes alive then on one device, by term."""

    name: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes of all terms together."""
        return sum(self.terms.values())


def peak(job: Job, layout: Layout, device: Device) -> Moment:
    """The moment of an update at which most memory is in use."""
    return max(moments(job, layout, device), key=lambda moment: moment.total)


def loading(job: Job, layout: Layout, device: Device) -> Moment:
    """Before the first update. On one device the model is loaded in float32, and with bf16 the float32 masters are made
    beside it. Of several ranks each reads its own pieces. A quantised model is loaded as it is kept.
    """
    e, kept = float(compute_bytes(job)), states(job, layout)
    overhead = {"overhead": device.reserve}
    if job.frozen != "dtype":
        return Moment("loading", {"weights": kept["weights"]} | overhead)
    if layout.shards * layout.tensor > 1:
        ends = embedding_parameters(job.shape) * (1 if job.shape.tied or job.method.scalar else 2)
        once = e * (block_parameters(job.shape) + ends) / layout.tensor if layout.shards > 1 else 0.0
        terms = {"weights": kept["weights"], "gathered": once}
        terms |= {name: kept[name] for name in ("towers", "reference", "value model") if name in kept}
        return Moment("loading", terms | overhead)
    terms = {
        "weights": 4.0 * policy_parameters(job),
        "master weights": 4.0 * trained_policy(job) if e == 2 else 0.0,
    }
    if job.shape.towers:
        terms["towers"] = 4.0 * job.shape.towers
    if job.has_value_model:
        terms["value model"] = kept["value model"]
    return Moment("loading", terms | overhead)


def fits(job: Job, layout: Layout, device: Device) -> bool:
    """Whether the largest moment stays within the share of the memory that may be planned with, loading included."""
    most = max(loading(job, layout, device).total, peak(job, layout, device).total)
    return most <= USABLE * device.memory


def moments(job: Job, layout: Layout, device: Device) -> list[Moment]:
    """Along one backward pass: activations and logits are alive at its start, gradients at its end. Before it, of a
    method that learns from rewards, the writing of an iteration's answers and their scoring.

    In the first micro-batch of an update the gradients are not there yet, in the next ones they are.
    """
    e, whole = compute_bytes(job), layout.shards == 1
    tokens = tokens_at_once(job, layout)
    kept, block = activation_bytes(job, layout, tokens, on_cpu=device.name == "cpu")
    live = block_working_bytes(job.shape, e, layout.tensor) * tokens + 2 / 3 * merged_bytes(job)  # of gate and up
    ends = _end_weights(job) / layout.tensor if whole else 0.0  # gradients of cut weights leave as they are made
    gradients = 4.0 * trained_parameters(job) / (layout.shards * layout.tensor)
    carried = gradients if micro_batches(job, layout) > 1 else 0.0
    # the gradient of a tied matrix waits for its other half; an untied head's is in its place as float32
    tied, head = job.shape.tied and not job.method.scalar, 0.0 if job.method.scalar else ends
    waiting = e * head if tied else 0.0
    after_head = carried + (waiting if tied or carried else 4 * head)
    before_embedding = carried or gradients - 4 * ends
    embedding = gradients + (e * ends if tied or carried or e == 2 else 0.0)
    again = again_bytes(job, layout, tokens, on_cpu=device.name == "cpu")
    valued = _value_activations(job, layout, tokens, on_cpu=device.name == "cpu")  # their backward pass is the first
    found = {
        "head": {
            "gradients": carried + e * head,
            "activations": kept + valued,
            "logits": logit_bytes(job, layout, tokens),
        },
        "last block": {"gradients": after_head, "activations": kept + live + again},
        "first block": {"gradients": before_embedding + waiting, "activations": live + block},
        "embedding": {"gradients": embedding, "activations": 3.0 * e * job.shape.width * tokens},
    }
    steady = states(job, layout) | {"overhead": device.reserve}
    gathered = _gathered(job, layout)
    update = [Moment(at, steady | found[at] | {"gathered": gathered[at]}) for at in _MOMENTS]
    if not job.method.online:
        return update
    written = (generation_bytes(job, layout, device), scoring_bytes(job, layout, device))
    return [*update, *(Moment(at, steady | terms) for at, terms in zip(_ROLLOUT, written, strict=True))]


def _value_activations(job: Job, layout: Layout, tokens: float, *, on_cpu: bool) -> float:
    """What the blocks of a value model of its own keep."""
    if not job.has_value_model:
        return 0.0
    kept, _ = activation_bytes(job, layout, tokens, on_cpu=on_cpu)
    return kept + again_bytes(job, layout, tokens, on_cpu=on_cpu)


def states(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes that stay: weights, float32 masters, optimiser, and the models beside the policy."""
    e, split, whole = compute_bytes(job), layout.shards * layout.tensor, layout.shards == 1
    trained = trained_policy(job)
    if job.rank:
        # cut adapters are float32 masters themselves and are rounded as they are gathered
        weights = frozen_bytes(job) + (e if whole else 4) * trained
    else:
        weights = (e if whole else 4) * policy_parameters(job)
    terms = {
        "weights": weights / split,
        "master weights": 4.0 * trained / split if e == 2 and whole else 0.0,
        "optimiser": float(job.state_bytes) * trained_parameters(job) / split,
    }
    if job.shape.towers:
        terms["towers"] = float(e) * job.shape.towers / split
    if job.reference == "live" and not job.rank:
        other = parameters(job.shape) + job.shape.towers + job.shape.projection
        terms["reference"] = float(e) * other / split
    if job.has_value_model:
        moved = trained_value(job)
        each = (e + 4 if e == 2 else e) if whole else 4  # a working copy and a master, or one for both
        terms["value model"] = float(e * (value_parameters(job) - moved) + each * moved) / split
    if job.reward is not None:  # in float32 too; whole beside tensor parallelism
        terms["reward model"] = reward_bytes(job.reward) / (layout.shards if layout.tensor == 1 else 1)
    return terms


def _gathered(job: Job, layout: Layout) -> dict[str, float]:
    """Whole weights and gradients alive at each moment when both are cut into shards, as FSDP2 leaves them.

    A unit (a block, or the root with embedding and head) is gathered while the one before it computes. Its gradient
    appears in the computed number format, its weights are let go, and a float32 copy of the gradient leaves by
    reduce-scatter, which may last until the next unit's gradient is there. So it is where tensor parallelism is alone.
    """
    e = float(compute_bytes(job))
    unit, end = (n / layout.tensor for n in (block_parameters(job.shape), embedding_parameters(job.shape)))
    ends = (1 if job.shape.tied else 2) * end  # the root's, gathered from end to end
    # a quantised block travels as it is, and one matrix of it at a time is taken out to be used
    matrix = e * job.shape.width * job.shape.ff / layout.tensor if job.frozen != "dtype" else 0.0
    if layout.shards * layout.tensor == 1:
        return dict.fromkeys(_MOMENTS, matrix)
    ahead = e * (job.shape.towers + job.shape.projection)  # with the root too
    if job.rank:  # no large gradient: the fullest is a forward pass, with two buffers and the unit taken out of one
        adapters = e * adapter_parameters(job.shape, job.rank) / job.shape.layers
        whole = (frozen_block_bytes(job) + adapters) / layout.tensor
        first, blocks = whole + 2 * e * ends + ahead, 3 * whole + matrix + e * ends + ahead
        return dict(zip(_MOMENTS, (first, blocks, blocks - whole, first), strict=True))
    # their gradients leave together
    beside = ahead + (e * ends + ahead if job.reference == "live" else 0.0)  # a reference's too
    blocks = e * (ends + end) + (3 * e + 4) * unit + beside
    own = (e * (ends + end) + e * unit + beside, blocks, blocks, (e + 4) * ends + beside)
    return dict(zip(_MOMENTS, own, strict=True))


def _end_weights(job: Job) -> float:
    """Trained weights of the embedding, and as many of the output head where there is one."""
    return 0.0 if job.rank else float(embedding_parameters(job.shape))
