"""The cost of sampling, rewarding and scoring an iteration's answers, before the updates of a method with rewards.

Bytes per device of `afzal train`'s decoding and scoring, and floating-point operations; docs/scale.md compares the
bytes with measured runs.
"""

from __future__ import annotations

import math

from afzal.plan.activations import block_working_bytes, merged_bytes
from afzal.plan.flops import Lengths, body_flops, head_flops, scaled
from afzal.plan.hardware import Device
from afzal.plan.job import (
    Job,
    Layout,
    compute_bytes,
    frozen_bytes,
    policy_parameters,
    tokens_per_pass,
    value_parameters,
)
from afzal.plan.shapes import Shape, adapter_parameters, block_matrices, embedding_parameters, parameters, reward_bytes

ROWS = 128  # answers decoded together
ROOM = 16  # tokens of an answer: the cache's capacity is a multiple of it, and grows by a quarter
PROMPT_TOKENS = 8192  # tokens per pass over prompts
SCORED_TILE = 2**25  # float32 log-probs of each model compared at the same time
SCORED_BYTES_CPU = 2**24  # on a CPU: bytes of each model's logits, as the head outputs them
SCORED_CACHED_CPU = 2**18  # the part of these that a core compares at the same time
# tables of that size in use at the same time: log-probs of both models and the terms of the KL, one of them bool
_COMPARED = 5.25
_PACKED_SHARE = 1 / 8  # of the memory, for weights that a CPU repacks for decoding
_SUMS_SHARE = 1 / 4  # of the memory; a run compares with half of the memory free at that time
_FLOAT32 = 4


def iteration(job: Job) -> Lengths:
    """The length sums of one iteration."""
    return scaled(job.lengths, min(job.batch_size, job.lengths.items))


def prompts_of_a_replica(job: Job, layout: Layout) -> int:
    """Prompts per device and iteration."""
    return math.ceil(min(job.batch_size, job.lengths.items) / layout.replicas)


def rows_at_once(job: Job, layout: Layout) -> int:
    """Answers that one device decodes together."""
    n = job.lengths.branches
    most_rows = ROWS // n * n if n <= ROWS else ROWS
    return min(most_rows, prompts_of_a_replica(job, layout) * n)


def cache_capacity(tokens: float) -> int:
    """Cache capacity, in tokens per row, after ``tokens`` tokens of the answer."""
    capacity = ROOM
    while capacity < tokens:
        capacity += max(ROOM, capacity // 4 // ROOM * ROOM)
    return capacity


def key_value_bytes(shape: Shape, e: int) -> float:
    """Bytes of one token's keys and values in all blocks."""
    return 2.0 * e * shape.layers * shape.kv_heads * shape.head_width


def generation_bytes(job: Job, layout: Layout, device: Device) -> dict[str, float]:
    """Bytes in use during sampling, by term.

    Keys and values of prompts (once for all their answers) and of answers; in addition the pass over the prompts, or
    the logits of one token of every row. A CPU has a second copy of unsharded matrices.
    """
    shape, e, rows = job.shape, compute_bytes(job), rows_at_once(job, layout)
    prompts = math.ceil(rows / job.lengths.branches)
    capacity = cache_capacity(job.lengths.response)
    prompt_tokens = min(prompts * job.lengths.prompt, max(PROMPT_TOKENS, job.lengths.prompt))
    working = block_working_bytes(shape, e, layout.tensor)
    # per row: scores of one layer and their softmax in float32 and in the number format of products, and queries and
    # results expanded to the key heads; or the logits. In addition the float32 buffer from which tokens are sampled.
    heads, key_heads = shape.heads / layout.tensor, shape.kv_heads / layout.tensor
    attention_row = 2 * heads * ((job.lengths.prompt + capacity) * (_FLOAT32 + e) + key_heads * shape.head_width * e)
    row_bytes = rows * (shape.vocabulary * _FLOAT32 + max(shape.vocabulary * e, attention_row + working))
    return {
        "keys and values": key_value_bytes(shape, e) / layout.tensor * (prompts * job.lengths.prompt + rows * capacity),
        "activations": max(prompt_tokens * working, row_bytes),
        "gathered": _unsharded_bytes(job, layout),
        "packed weights": _packed_bytes(job, device) if layout.tensor == 1 else 0.0,
        "experts with adapters": _sum_bytes(job, device),
    }


def _sum_bytes(job: Job, device: Device) -> float:
    """Bytes of experts merged with their adapters: once for all answers (:mod:`afzal.model.experts`), or block by block
    if the sums would take too much memory."""
    size = job.shape.layers * merged_bytes(job)
    return size if size <= _SUMS_SHARE * device.memory else merged_bytes(job)


def _packed_bytes(job: Job, device: Device) -> float:
    """Bytes of the policy's matrices repacked for a CPU's products; 0 if they do not fit into their share."""
    matrices = job.shape.layers * block_matrices(job.shape) + embedding_parameters(job.shape)
    size = float(compute_bytes(job)) * matrices
    return size if device.name == "cpu" and not job.shape.experts and size <= _PACKED_SHARE * device.memory else 0.0


def scoring_bytes(job: Job, layout: Layout, device: Device) -> dict[str, float]:
    """Bytes in use while policy, reference and value model score the answers, by term.

    The logits of policy and reference and the numbers computed from them; or a block of the reward model, which
    computes in float32. A sharded reward model is gathered afterwards, when the others are freed; the larger of the two
    counts.
    """
    tokens = tokens_per_pass(job, layout, iteration(job).tokens)
    scored = tokens * job.lengths.scored / job.lengths.tokens
    e, shape = compute_bytes(job), job.shape
    states = 2.0 * e * shape.width * scored
    n_logits = scored * shape.vocabulary
    logits = _COMPARED * _FLOAT32 * min(n_logits, SCORED_TILE)
    if device.name == "cpu":
        logits = 2 * min(e * n_logits, SCORED_BYTES_CPU) + _COMPARED * _FLOAT32 * min(n_logits, SCORED_CACHED_CPU)
    reward_working = block_working_bytes(job.reward, _FLOAT32) if job.reward is not None else 0.0
    reward_apart = job.reward is not None and layout.shards * layout.tensor > 1
    working = max(block_working_bytes(shape, e, layout.tensor), 0.0 if reward_apart else reward_working)
    block = tokens * working + merged_bytes(job)
    at_head = states + logits >= block
    scoring_terms = {
        "logits": logits if at_head else 0.0,
        "activations": states if at_head else block,
        "gathered": _unsharded_bytes(job, layout),
    }
    if job.reward is None or not reward_apart:
        return scoring_terms
    reward_terms = {"logits": 0.0, "activations": tokens * reward_working, "gathered": reward_bytes(job.reward)}
    return max(scoring_terms, reward_terms, key=lambda terms: sum(terms.values()))


def _unsharded_bytes(job: Job, layout: Layout) -> float:
    """Bytes of sharded models gathered during rollouts: every device then holds all of their layers."""
    if layout.shards == 1:
        return 0.0
    e = compute_bytes(job)
    policy = frozen_bytes(job) + e * adapter_parameters(job.shape, job.rank) if job.rank else e * policy_parameters(job)
    reference = e * parameters(job.shape) if job.reference == "live" and not job.rank else 0.0
    value = float(e) * value_parameters(job) if job.has_value_model else 0.0
    return (policy + reference + value) / layout.tensor


def scoring_flops(job: Job) -> float:
    """Operations of one iteration over all devices for log-probs of policy and reference, rewards and values."""
    lengths = iteration(job)
    body, head = body_flops(job.shape, lengths), head_flops(job.shape, lengths)
    models = 1 + (job.reference == "live")
    rewards = body_flops(job.reward, lengths) if job.reward is not None else 0.0
    return models * (body + head) + rewards + (body if job.method.value else 0.0)


def sums_of_tensor_ranks(job: Job, layout: Layout, tokens: float) -> float:
    """Bytes that a device receives while ``tokens`` tokens pass through one model: two ring all-reduces per block."""
    ring = 2 * (layout.tensor - 1) / layout.tensor
    return 2.0 * job.shape.layers * ring * tokens * job.shape.width * compute_bytes(job)


def drawing_flops(job: Job) -> float:
    """Operations for sampling one iteration's answers: prompts once, then token by token, each with the head."""
    lengths = iteration(job)
    return body_flops(job.shape, lengths) + head_flops(job.shape, lengths)
