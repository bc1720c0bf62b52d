"""Bytes that grow with a forward pass: activations kept for the backward pass, working memory, and logits.

Counted from the operations of `transformers`' blocks and of the tree attention; docs/scale.md compares them with
measured runs. In names and comments ``e`` is the number of bytes of a computed number.
"""

from __future__ import annotations

from afzal.plan.job import Job, Layout, compute_bytes
from afzal.plan.shapes import Shape

KEPT_LOGITS = 2**30  # bytes of logits that one forward pass keeps; above that, they are recomputed tile by tile
TILE = 2**24  # logits per product if they are not kept
TENSOR_TILE = 2**26  # float32 logits in use at the same time if the vocabulary is sharded


def activation_bytes(job: Job, layout: Layout, tokens: float, *, on_cpu: bool) -> tuple[float, float]:
    """Bytes per device that all blocks keep for the backward pass, and that one block keeps without recomputation.

    With recomputation, one block at a time needs the second number; :func:`recomputed_bytes` is then added to the
    first.
    """
    e, width = compute_bytes(job), job.shape.width
    block = block_kept_bytes(job, on_cpu=on_cpu, tensor=layout.tensor)
    per_block = {
        "none": block,
        "selective": _selective_bytes(job, on_cpu=on_cpu, tensor=layout.tensor),
        "full": width * e,
    }[layout.recompute]
    last_norm = _norm_bytes(job.shape, e, trained=not job.rank, on_cpu=on_cpu)
    shared = _row_bytes(job, on_cpu=on_cpu, tensor=layout.tensor)
    experts = merged_bytes(job)
    per_pass = (job.shape.layers * per_block + last_norm + shared) * tokens
    return per_pass + (job.shape.layers * experts if layout.recompute == "none" else 0.0), block * tokens + experts


def merged_bytes(job: Job) -> float:
    """Bytes of a block's experts merged with their adapters: PEFT adds the two in every forward pass, however many
    tokens it has, and the backward pass needs the sum."""
    shape = job.shape
    return 3.0 * shape.experts * shape.ff * shape.width * compute_bytes(job) if job.rank else 0.0


def _row_bytes(job: Job, *, on_cpu: bool, tensor: int) -> float:
    """Bytes per token that the attention of all blocks keeps jointly: in bf16 on the CPU, each head's gather indices
    and the attention mask; otherwise next to nothing."""
    shape, e = job.shape, compute_bytes(job)
    if not (on_cpu and e == 2):
        return 0.0
    repeats = job.lengths.keys / job.lengths.tokens
    places = 8 * (2 * shape.heads + shape.kv_heads * repeats) / tensor
    return places + e * job.lengths.dense / job.lengths.tokens


def recomputed_bytes(job: Job, layout: Layout, tokens: float, *, on_cpu: bool) -> float:
    """Bytes that the backward pass through a block recomputes; matrix products that were kept are not recomputed."""
    if layout.recompute == "none":
        return 0.0
    block = block_kept_bytes(job, on_cpu=on_cpu, tensor=layout.tensor)
    kept = _selective_bytes(job, on_cpu=on_cpu, tensor=layout.tensor) if layout.recompute == "selective" else 0.0
    return max(0.0, block - kept) * tokens + merged_bytes(job)


def _selective_bytes(job: Job, *, on_cpu: bool, tensor: int) -> float:
    """Bytes per token that one block keeps if it keeps only its input and the results of fused attention and of matrix
    products other than the experts' (:mod:`afzal.model.recompute`). Every device has
    a full copy of results as wide as the model."""
    shape, e = job.shape, compute_bytes(job)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    products = shape.width + (queries + 2 * keys) / tensor
    products += 0 if shape.experts else shape.width + 2 * shape.ff / tensor  # those of experts are recomputed
    adapters = _adapter_numbers(job) + (products if job.rank else 0)  # of the matrix and of its adapter separately
    fused = not (on_cpu and e == 2)  # on a CPU, a short tree's attention in bf16 uses plain products
    return e * (shape.width + products + adapters) + fused * (e * queries + 4 * shape.heads) / tensor


def block_kept_bytes(job: Job, *, on_cpu: bool, tensor: int = 1) -> float:
    """Bytes per token that one block keeps for its backward pass, on each of the ``tensor`` devices that share it.

    A norm keeps its input in float32, the normed input if its weight trains, and its output, all replicated on every
    device; on a CPU the unconverted input (:mod:`afzal.model.norms`) and its output. Attention keeps its gathered
    queries, keys and values, and its output before and after reordering; on the CPU, in bf16 and for short trees, the
    original queries, keys and values, its output, and its weights. The feed-forward layer keeps gate, activated gate,
    up and their product.
    """
    shape, e = job.shape, compute_bytes(job)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    trained = not job.rank
    norm = _norm_bytes(shape, e, trained=trained, on_cpu=on_cpu)
    norms = 2 * norm
    if shape.norms == 4:
        norms += 2 * (norm - shape.width * e)
    repeats = job.lengths.keys / job.lengths.tokens
    attention = e * (3 * queries + 2 * keys * repeats) + 4 * shape.heads
    if on_cpu and e == 2:
        attention = e * (2 * (queries + keys) + shape.heads * job.lengths.dense / job.lengths.tokens)
    if shape.head_norm != "none":
        attention += (queries + keys) * (e if _is_fused(shape, e, on_cpu=on_cpu) else 4 + (e if trained else 0))
    adapters = e * _adapter_numbers(job)
    return norms + (attention + _feed_forward_kept(shape, e)) / tensor + adapters


def _adapter_numbers(job: Job) -> int:
    """Numbers per token from the first halves of the LoRA adapters: on seven matrices of a block; with experts, on
    those of attention and on the router, since the experts' adapters are merged (:func:`merged_bytes`)."""
    return (5 if job.shape.experts else 7) * job.rank


def _feed_forward_kept(shape: Shape, e: int) -> float:
    if not shape.experts:
        return 4.0 * shape.ff * e
    return shape.experts_used * (4.0 * shape.ff + 2.0 * shape.width) * e + 8.0 * shape.experts


def _is_fused(shape: Shape, e: int, *, on_cpu: bool) -> bool:
    unfused = shape.family.startswith("gemma") or (shape.family == "olmo2" and e == 2)
    return on_cpu and not unfused


def _norm_bytes(shape: Shape, e: int, *, trained: bool, on_cpu: bool) -> float:
    """Bytes per token that a norm and the layer after it keep: input, normed input, output."""
    if _is_fused(shape, e, on_cpu=on_cpu):
        return shape.width * 2 * e
    normed = 4 if shape.family.startswith("gemma") else e
    return shape.width * (4 + (normed if trained else 0) + e)


def block_working_bytes(shape: Shape, e: int, tensor: int = 1) -> float:
    """Bytes per token in use inside the backward pass of one block: gradients of its widest part."""
    used = max(1, shape.experts_used)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    return e * max(3 * used * shape.ff / tensor, (3 * queries + 4 * keys) / tensor) + e * 2 * shape.width


def logit_bytes(job: Job, layout: Layout, tokens: float) -> float:
    """Bytes of the logits that are kept or, if they would not fit, of one tile of them."""
    if job.method.scalar:
        return 0.0
    e, scored = compute_bytes(job), tokens * job.lengths.scored / job.lengths.tokens
    if layout.tensor > 1:
        # a device's logits, the gathered logits of all devices, and in float32 the log-probs and their gradient; or,
        # while a reference does the same, its logits and log-probs in addition to the policy's
        tables = e / layout.tensor + (e if e == 2 else 0) + (12.0 if job.reference == "live" else 8.0)
        return min(scored * job.shape.vocabulary, TENSOR_TILE) * tables
    size = scored * job.shape.vocabulary * e
    return size if size <= KEPT_LOGITS else float(TILE * e)
