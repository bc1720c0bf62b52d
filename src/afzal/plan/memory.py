"""Bytes per device of one update, term by term, at the moments when most is alive.

The state (weights, masters, gradients, optimiser) is counted exactly. What a block keeps for its backward pass is
counted from the operations of `transformers`' own blocks and of the tree attention; see docs/scale.md for how far both
agree with measured runs. In names and comments ``e`` is the bytes of a computed number.
"""

from __future__ import annotations

from dataclasses import dataclass

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
)
from afzal.plan.shapes import (
    Shape,
    adapter_parameters,
    block_parameters,
    embedding_parameters,
    parameters,
    trunk_parameters,
)

KEPT_LOGITS = 2**30  # bytes of logits that one forward pass keeps; beyond, they are recomputed tile by tile
TILE = 2**22  # float32 logits at work at once
_MOMENTS = ("head", "last block", "first block", "embedding")  # along the backward pass
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
    """Before the first update: every rank loads the whole model in float32, and cuts it when all is made.

    With bf16 the float32 masters are made beside it, and with several ranks a live reference is still whole too. A
    quantised model is loaded as it is kept.
    """
    if job.frozen != "dtype":
        return Moment("loading", {"weights": states(job, layout)["weights"], "overhead": device.reserve})
    whole = layout.shards == 1
    terms = {
        "weights": 4.0 * (policy_parameters(job) + _value_parameters(job)),
        "master weights": 4.0 * trained_parameters(job) if compute_bytes(job) == 2 else 0.0,
    }
    if not whole and job.reference == "live" and not job.rank:
        terms["reference"] = float(compute_bytes(job)) * parameters(job.shape)
    return Moment("loading", terms | {"overhead": device.reserve})


def fits(job: Job, layout: Layout, device: Device) -> bool:
    """Whether the largest moment stays within the share of the memory that may be planned with, loading included."""
    most = max(loading(job, layout, device).total, peak(job, layout, device).total)
    return most <= USABLE * device.memory


def moments(job: Job, layout: Layout, device: Device) -> list[Moment]:
    """Along one backward pass: activations and logits are alive at its start, gradients at its end.

    In the first micro-batch of an update the gradients are not there yet, in the next ones they are.
    """
    e, whole = compute_bytes(job), layout.shards == 1
    tokens = tokens_at_once(job, layout)
    kept, block = activation_bytes(job, layout, tokens, on_cpu=device.name == "cpu")
    live = block_working_bytes(job.shape, e) * tokens / layout.tensor
    ends = _end_weights(job) / layout.tensor if whole else 0.0  # gradients of cut weights leave as they are made
    gradients = 4.0 * trained_parameters(job) / (layout.shards * layout.tensor)
    carried = gradients if micro_batches(job, layout) > 1 else 0.0
    # the gradient of a tied matrix waits for its other half; an untied head's is in its place as float32
    tied, head = job.shape.tied and not job.method.scalar, 0.0 if job.method.scalar else ends
    waiting = e * head if tied else 0.0
    after_head = carried + (waiting if tied or carried else 4 * head)
    before_embedding = carried or gradients - 4 * ends
    embedding = gradients + (e * ends if tied or carried or e == 2 else 0.0)
    again = block if layout.recompute else 0.0
    found = {
        "head": {
            "gradients": carried + e * head,
            "activations": kept,
            "logits": logit_bytes(job, layout, tokens),
        },
        "last block": {"gradients": after_head, "activations": kept + live + again},
        "first block": {"gradients": before_embedding + waiting, "activations": live + block},
        "embedding": {"gradients": embedding, "activations": 3.0 * e * job.shape.width * tokens / layout.tensor},
    }
    steady = states(job, layout) | {"overhead": device.reserve}
    gathered = _gathered(job, layout)
    return [Moment(at, steady | found[at] | {"gathered": gathered[at]}) for at in _MOMENTS]


def states(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes that stay: weights, float32 masters, optimiser, and the models beside the policy."""
    e, split, whole = compute_bytes(job), layout.shards * layout.tensor, layout.shards == 1
    trained, value = trained_parameters(job), _value_parameters(job)
    if job.rank:
        # cut adapters are float32 masters themselves and are rounded as they are gathered
        weights = frozen_bytes(job) + (e if whole else 4) * trained
    else:
        weights = (e if whole else 4) * (policy_parameters(job) + value)
    terms = {
        "weights": weights / split,
        "master weights": 4.0 * trained / split if e == 2 and whole else 0.0,
        "optimiser": float(job.state_bytes) * trained / split,
    }
    if job.reference == "live" and not job.rank:
        terms["reference"] = float(e) * parameters(job.shape) / split
    if job.method.reward_model:
        terms["reward model"] = float(e) * trunk_parameters(job.shape) / split
    return terms


def activation_bytes(job: Job, layout: Layout, tokens: float, *, on_cpu: bool) -> tuple[float, float]:
    """What all blocks keep for the backward pass, and what one block keeps without recomputation, per device."""
    one = block_kept_bytes(job, on_cpu=on_cpu) * tokens / layout.tensor
    inputs = job.shape.width * compute_bytes(job) * tokens / layout.tensor
    ends = _norm_bytes(job.shape, compute_bytes(job), trained=not job.rank) * tokens / layout.tensor
    kept = job.shape.layers * (inputs if layout.recompute else one) + ends
    return kept, one


def block_kept_bytes(job: Job, *, on_cpu: bool) -> float:
    """Bytes per token that one block keeps for its backward pass.

    A norm keeps its input in float32, the normed input where its weight trains, and its output; attention keeps its
    gathered queries, keys and values, its output before and after it is put back in order, and on the CPU, in bf16 and
    for short trees, its weights; the feed-forward layer keeps gate, activated gate, up and their product.
    """
    shape, e = job.shape, compute_bytes(job)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    trained = not job.rank
    norms = 2 * _norm_bytes(shape, e, trained=trained)
    if shape.norms == 4:
        norms += 2 * (_norm_bytes(shape, e, trained=trained) - shape.width * e)
    repeats = job.lengths.keys / job.lengths.tokens
    attention = e * (3 * queries + 2 * keys * repeats) + 4 * shape.heads
    if on_cpu and e == 2:
        attention += e * shape.heads * job.lengths.products / job.lengths.tokens
    if shape.head_norm != "none":
        attention += (queries + keys) * (4 + (e if trained else 0))
    adapters = e * 7 * job.rank
    return norms + attention + _feed_forward_kept(shape, e) + adapters


def _feed_forward_kept(shape: Shape, e: int) -> float:
    if not shape.experts:
        return 4.0 * shape.ff * e
    return shape.experts_used * (4.0 * shape.ff + 2.0 * shape.width) * e + 8.0 * shape.experts


def _norm_bytes(shape: Shape, e: int, *, trained: bool) -> float:
    """Bytes per token that a norm and what follows it keep: input in float32, normed input, output."""
    normed = 4 if shape.family.startswith("gemma") else e
    return shape.width * (4 + (normed if trained else 0) + e)


def block_working_bytes(shape: Shape, e: int) -> float:
    """Bytes per token alive inside the backward pass of one block: gradients of its widest part."""
    used = max(1, shape.experts_used)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    return e * max(3 * used * shape.ff + 2 * shape.width, 3 * queries + 4 * keys + 2 * shape.width)


def logit_bytes(job: Job, layout: Layout, tokens: float) -> float:
    """Bytes of the logits that are kept, and of the tiles at work on them."""
    if job.method.scalar:
        return 0.0
    scored = tokens * job.lengths.scored / job.lengths.tokens
    kept = scored * job.shape.vocabulary * compute_bytes(job) / layout.tensor
    tiles = 4.0 * TILE * (2 if job.dtype == "fp32" else 3)
    return (kept if kept <= KEPT_LOGITS else 0.0) + min(tiles, 12.0 * scored * job.shape.vocabulary)


def _gathered(job: Job, layout: Layout) -> dict[str, float]:
    """Whole weights and gradients alive at each moment when both are cut into shards, as FSDP2 leaves them.

    A unit (a block; embedding and head by themselves) is gathered while the one before it computes. Its gradient
    appears in the computed number format, its weights are let go, and a float32 copy of the gradient leaves by
    reduce-scatter, which may last until the next unit's gradient is there. A tied matrix stays from end to end.
    """
    e = float(compute_bytes(job))
    unit, end = (n / layout.tensor for n in (block_parameters(job.shape), embedding_parameters(job.shape)))
    # a quantised block travels as it is, and one matrix of it at a time is taken out to be used
    matrix = e * job.shape.width * job.shape.ff / layout.tensor if job.frozen != "dtype" else 0.0
    if layout.shards == 1:
        return dict.fromkeys(_MOMENTS, matrix)
    if job.rank:  # no large gradient: the fullest is a forward pass, with two buffers and the unit taken out of one
        adapters = e * adapter_parameters(job.shape, job.rank) / job.shape.layers
        whole = (frozen_block_bytes(job) + adapters) / layout.tensor
        stays = matrix + (e * end if job.shape.tied else 0.0)
        ends, blocks = whole + 2 * e * end, 3 * whole + stays
        return dict(zip(_MOMENTS, (ends, blocks, 2 * whole + stays, ends), strict=True))
    leaving = (e + 4) * end
    if job.shape.tied:
        blocks = 2 * e * end + (3 * e + 4) * unit
        return dict(zip(_MOMENTS, (2 * e * end + e * unit, blocks, blocks, leaving), strict=True))
    own = (leaving + e * unit, 4 * end + 3 * e * unit, (4 + 3 * e) * unit, max(leaving, 4 * unit + 2 * e * end))
    return dict(zip(_MOMENTS, own, strict=True))


def _value_parameters(job: Job) -> int:
    return trunk_parameters(job.shape) + job.shape.width if job.method.value and not job.rank else 0


def _end_weights(job: Job) -> float:
    """Trained weights of the embedding, and as many of the output head where there is one."""
    return 0.0 if job.rank else float(embedding_parameters(job.shape))
