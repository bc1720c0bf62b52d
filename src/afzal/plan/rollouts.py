"""What an iteration of a method that learns from rewards needs before its updates: answers drawn, rewarded and scored.

Bytes per device of `afzal train`'s own decoding and scoring, and floating-point operations; docs/scale.md says how far
the bytes agree with measured runs.
"""

from __future__ import annotations

import math

from afzal.plan.activations import block_working_bytes, merged_bytes
from afzal.plan.hardware import Device
from afzal.plan.job import Job, Layout, at_most, compute_bytes, frozen_bytes, policy_parameters, value_parameters
from afzal.plan.shapes import Shape, adapter_parameters, block_matrices, embedding_parameters, parameters, reward_bytes
from afzal.plan.work import Lengths, body_flops, head_flops, part

ROWS = 128  # answers that are decoded together
ROOM = 16  # tokens of an answer: the cache has room for multiples of it, and grows by a quarter
PROMPT_TOKENS = 8192  # of a pass over prompts
SCORED_TILE = 2**25  # float32 log-probs of each model that are compared at once
SCORED_BYTES_CPU = 2**24  # the logits of each model there, as the head gives them
SCORED_CACHED_CPU = 2**18  # of these, what a core compares at once
# tables of that size alive at once: log-probs of both, and what the KL is summed from, one of them bool
_COMPARED = 5.25
_PACKED_SHARE = 1 / 8  # of the memory, for weights that a CPU lays out anew for decoding
_SUMS_SHARE = 1 / 4  # of the memory; a run compares with half of what is free then
_FLOAT32 = 4


def iteration(job: Job) -> Lengths:
    """The lengths of one iteration, as sums."""
    return part(job.lengths, min(job.batch_size, job.lengths.items))


def prompts_of_a_replica(job: Job, layout: Layout) -> int:
    """Prompts that one device answers in an iteration."""
    return math.ceil(min(job.batch_size, job.lengths.items) / layout.replicas)


def rows_at_once(job: Job, layout: Layout) -> int:
    """Answers that one device decodes together."""
    n = job.lengths.branches
    most = ROWS // n * n if n <= ROWS else ROWS
    return min(most, prompts_of_a_replica(job, layout) * n)


def room_for(tokens: float) -> int:
    """Places for keys and values of a row after so many tokens of its answer."""
    room = ROOM
    while room < tokens:
        room += max(ROOM, room // 4 // ROOM * ROOM)
    return room


def key_value_bytes(shape: Shape, e: int) -> float:
    """Keys and values of one token in all blocks."""
    return 2.0 * e * shape.layers * shape.kv_heads * shape.head_width


def generation_bytes(job: Job, layout: Layout, device: Device) -> dict[str, float]:
    """While answers are drawn: keys and values of prompts (once for all their answers) and of answers; beside them the
    pass over the prompts, or the logits of one token of every row. A CPU has a second copy of matrices that are whole.
    """
    shape, e, rows = job.shape, compute_bytes(job), rows_at_once(job, layout)
    prompts = math.ceil(rows / job.lengths.branches)
    room = room_for(job.lengths.response)
    read = min(prompts * job.lengths.prompt, max(PROMPT_TOKENS, job.lengths.prompt))
    working = block_working_bytes(shape, e, layout.tensor)
    # of a row: scores of one layer and their softmax in float32, and in the number format of products; queries and
    # results with a place for every key head; or logits, beside the room in float32 from which tokens are drawn
    heads, key_heads = shape.heads / layout.tensor, shape.kv_heads / layout.tensor
    seen = 2 * heads * ((job.lengths.prompt + room) * (_FLOAT32 + e) + key_heads * shape.head_width * e)
    drawn = rows * (shape.vocabulary * _FLOAT32 + max(shape.vocabulary * e, seen + working))
    return {
        "keys and values": key_value_bytes(shape, e) / layout.tensor * (prompts * job.lengths.prompt + rows * room),
        "activations": max(read * working, drawn),
        "gathered": _whole_bytes(job, layout),
        "packed weights": _packed_bytes(job, device) if layout.tensor == 1 else 0.0,
        "experts with adapters": _sum_bytes(job, device),
    }


def _sum_bytes(job: Job, device: Device) -> float:
    """Experts and their adapters, added up once for all answers (:mod:`afzal.model.experts`); or one block after the
    other, where the sums would take too much of the memory."""
    size = job.shape.layers * merged_bytes(job)
    return size if size <= _SUMS_SHARE * device.memory else merged_bytes(job)


def _packed_bytes(job: Job, device: Device) -> float:
    """The matrices of the policy as a CPU's products read them; none where they do not fit into their share."""
    matrices = job.shape.layers * block_matrices(job.shape) + embedding_parameters(job.shape)
    size = float(compute_bytes(job)) * matrices
    return size if device.name == "cpu" and not job.shape.experts and size <= _PACKED_SHARE * device.memory else 0.0


def scoring_bytes(job: Job, layout: Layout, device: Device) -> dict[str, float]:
    """While policy, reference and value model read the answers: the logits of both and what is made of them; or a block
    of the reward model, which computes in float32. A reward model in shards is whole after that, while the others are
    no more: the fuller of the two."""
    tokens = at_most(job, layout, iteration(job).tokens)
    scored = tokens * job.lengths.scored / job.lengths.tokens
    e, shape = compute_bytes(job), job.shape
    states = 2.0 * e * shape.width * scored
    compared = scored * shape.vocabulary
    logits = _COMPARED * _FLOAT32 * min(compared, SCORED_TILE)
    if device.name == "cpu":
        logits = 2 * min(e * compared, SCORED_BYTES_CPU) + _COMPARED * _FLOAT32 * min(compared, SCORED_CACHED_CPU)
    of_reward = block_working_bytes(job.reward, _FLOAT32) if job.reward is not None else 0.0
    apart = job.reward is not None and layout.shards > 1 and layout.tensor == 1
    working = max(block_working_bytes(shape, e, layout.tensor), 0.0 if apart else of_reward)
    block = tokens * working + merged_bytes(job)
    at_head = states + logits >= block
    read = {
        "logits": logits if at_head else 0.0,
        "activations": states if at_head else block,
        "gathered": _whole_bytes(job, layout),
    }
    if job.reward is None or not apart:
        return read
    rewarded = {"logits": 0.0, "activations": tokens * of_reward, "gathered": reward_bytes(job.reward)}
    return max(read, rewarded, key=lambda terms: sum(terms.values()))


def _whole_bytes(job: Job, layout: Layout) -> float:
    """Of models that lie in shards: every device holds all of their layers as long as an iteration is written."""
    if layout.shards == 1:
        return 0.0
    e = compute_bytes(job)
    policy = frozen_bytes(job) + e * adapter_parameters(job.shape, job.rank) if job.rank else e * policy_parameters(job)
    reference = e * parameters(job.shape) if job.reference == "live" and not job.rank else 0.0
    value = float(e) * value_parameters(job) if job.has_value_model else 0.0
    return (policy + reference + value) / layout.tensor


def scoring_flops(job: Job) -> float:
    """Operations of one iteration for log-probs of policy and reference, rewards and values, over all devices."""
    found = iteration(job)
    read, heads = body_flops(job.shape, found), head_flops(job.shape, found)
    models = 1 + (job.reference == "live")
    rewards = body_flops(job.reward, found) if job.reward is not None else 0.0
    return models * (read + heads) + rewards + (read if job.method.value else 0.0)


def sums_of_tensor_ranks(job: Job, layout: Layout, tokens: float) -> float:
    """Bytes that a device receives when so many tokens pass through one model: two sums per block, as a ring."""
    ring = 2 * (layout.tensor - 1) / layout.tensor
    return 2.0 * job.shape.layers * ring * tokens * job.shape.width * compute_bytes(job)


def drawing_flops(job: Job) -> float:
    """Operations of one iteration's answers: prompts once, then token by token, each with its head."""
    found = iteration(job)
    return body_flops(job.shape, found) + head_flops(job.shape, found)
