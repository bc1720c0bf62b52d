"""The arithmetic of an update: data lengths, and the fewest floating-point operations that give the exact result.

Shapes: n items of one prompt and K responses; ``counts`` is ``[n, 1 + K]`` tokens, the prompt's first; 0 for missing
responses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from afzal.plan.shapes import Shape, adapter_parameters, visited_matrices


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sums over items, in tokens.

    Attributes:
        tokens: tokens computed by one forward pass.
        scored: response tokens, whose log-probs are computed.
        keys: key slots of attention; a prompt's keys are repeated for each of its responses.
        products: query-key pairs in which the query may attend to the key.
        dense: query-key pairs if all pairs within a prompt or a response are computed, later keys included.
        longest: tokens of the largest item, which cannot be split.
        prompt, response: tokens of the longest prompt and of the longest response.
        branches: largest number of responses to one prompt.
    """

    items: int
    tokens: float
    scored: float
    keys: float
    products: float
    dense: float
    longest: int
    prompt: int
    response: int
    branches: int


def lengths(counts: np.ndarray, *, shared: bool = True) -> Lengths:
    """Sums over the items; without ``shared``, every response has its own copy of the prompt."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    branches = (responses > 0).sum(1, keepdims=True)
    scored = float(responses.sum())
    repeated = float((prompts * branches).sum())
    if shared:
        tokens, keys, products = float(counts.sum()), float(prompts.sum()) + repeated + scored, attended_pairs(counts)
        longest, squares = counts.sum(1).max(), float((counts.astype(float) * (counts - 1) / 2).sum())
    else:
        sequences = np.where(responses > 0, prompts + responses, 0)
        tokens = keys = float(sequences.sum())
        products, longest = float((sequences * (sequences + 1) / 2).sum()), sequences.sum(1).max()
        squares = float((sequences * (sequences - 1) / 2).sum())
    most = (int(longest), int(counts[:, 0].max()), int(counts[:, 1:].max()), int(branches.max()))
    return Lengths(len(counts), tokens, scored, keys, products, products + squares, *most)


def scaled(lengths: Lengths, items: float) -> Lengths:
    """The sums scaled to ``items`` items."""
    factor = items / lengths.items
    sums = {name: getattr(lengths, name) * factor for name in ("tokens", "scored", "keys", "products", "dense")}
    return replace(lengths, items=round(items), **sums)


def attended_pairs(counts: np.ndarray) -> float:
    """Query-key pairs in which the query may attend to the key; prompts count once."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    return float((prompts * (prompts + 1) / 2).sum() + (responses * (prompts + (responses + 1) / 2)).sum())


def body_weights(shape: Shape) -> int:
    """Weights of all blocks that each token is multiplied with once."""
    return shape.layers * visited_matrices(shape)


def per_product(shape: Shape) -> int:
    """Operations of the forward pass for each query-key product, over all layers and heads."""
    return 4 * shape.layers * shape.heads * shape.head_width


def body_flops(shape: Shape, lengths: Lengths) -> float:
    """Operations of one forward pass through the blocks."""
    return 2.0 * body_weights(shape) * lengths.tokens + per_product(shape) * lengths.products


def head_flops(shape: Shape, lengths: Lengths) -> float:
    """Operations of the output head at the response tokens, one forward pass."""
    return 2.0 * shape.width * shape.vocabulary * lengths.scored


def least_flops(shape: Shape, lengths: Lengths, *, reference_online: bool) -> float:
    """Operations of full fine-tuning on these items: a forward pass, a backward pass of twice that, and one more
    forward pass for a reference that is not cached. No recomputation."""
    return (body_flops(shape, lengths) + head_flops(shape, lengths)) * (4 if reference_online else 3)


@dataclass(frozen=True, slots=True)
class Passes:
    """How often the parts of a forward pass are computed for one update of one model.

    Attributes:
        forward: additional forward passes: a live reference, an estimate.
        recompute: forward passes through the blocks that the backward pass repeats, 0 or 1.
        rank: rank of LoRA adapters, 0 if all weights train. Frozen weights have no gradient, so the backward pass of
            their products costs one forward pass, not two.
    """

    forward: float = 0.0
    recompute: int = 0
    rank: int = 0


def update_flops(shape: Shape, lengths: Lengths, passes: Passes, *, scalar_head: bool = False) -> float:
    """Operations that one update executes, recomputation included."""
    head = 0.0 if scalar_head else head_flops(shape, lengths)
    matrices = 2.0 * body_weights(shape) * lengths.tokens
    attention = per_product(shape) * lengths.products
    if passes.rank:
        adapters = 2.0 * adapter_parameters(shape, passes.rank) * lengths.tokens
        trained = 2 * matrices + 3 * adapters + 3 * attention + 2 * head
    else:
        trained = 3 * (matrices + attention + head)
    return trained + passes.recompute * (matrices + attention) + passes.forward * (matrices + attention + head)
