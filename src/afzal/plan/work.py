"""How much an update computes: lengths of the data, and the least floating-point operations that give the exact result.

Shapes: n items of one prompt and K responses; ``counts`` is ``[n, 1 + K]`` tokens, the prompt's first, 0 where an item
has fewer responses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from afzal.plan.shapes import Shape, adapter_parameters, visited_matrices


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sums over items, in tokens.

    Attributes:
        tokens: computed by one forward pass.
        scored: response tokens, whose log-probs are taken.
        keys: key slots of attention; a prompt's keys are laid out again for each of its responses.
        products: query-key pairs in which the query may look at the key.
        dense: query-key pairs where those within a prompt or a response are all computed, also the later keys.
        longest: tokens of the largest item, which cannot be cut.
        prompt, response: tokens of the longest prompt and of the longest response.
        branches: most responses of one prompt.
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
    """Sums over the items; not ``shared`` means that every response comes with a prompt of its own."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    branches = (responses > 0).sum(1, keepdims=True)
    scored = float(responses.sum())
    repeated = float((prompts * branches).sum())
    if shared:
        tokens, keys, products = float(counts.sum()), float(prompts.sum()) + repeated + scored, looked_at(counts)
        longest, squares = counts.sum(1).max(), float((counts.astype(float) * (counts - 1) / 2).sum())
    else:
        whole = np.where(responses > 0, prompts + responses, 0)
        tokens = keys = float(whole.sum())
        products, longest = float((whole * (whole + 1) / 2).sum()), whole.sum(1).max()
        squares = float((whole * (whole - 1) / 2).sum())
    most = (int(longest), int(counts[:, 0].max()), int(counts[:, 1:].max()), int(branches.max()))
    return Lengths(len(counts), tokens, scored, keys, products, products + squares, *most)


def part(found: Lengths, items: float) -> Lengths:
    """The sums of so many of the items."""
    share = items / found.items
    sums = {name: getattr(found, name) * share for name in ("tokens", "scored", "keys", "products", "dense")}
    return replace(found, items=round(items), **sums)


def looked_at(counts: np.ndarray) -> float:
    """Query-key pairs in which the query may look at the key, prompts once."""
    prompts, responses = counts[:, :1].astype(float), counts[:, 1:].astype(float)
    return float((prompts * (prompts + 1) / 2).sum() + (responses * (prompts + (responses + 1) / 2)).sum())


def body_weights(shape: Shape) -> int:
    """Weights of all blocks: what each token is multiplied with once."""
    return shape.layers * visited_matrices(shape)


def per_product(shape: Shape) -> int:
    """Operations of the forward pass for each query-key product, over all layers and heads."""
    return 4 * shape.layers * shape.heads * shape.head_width


def body_flops(shape: Shape, found: Lengths) -> float:
    """Operations of one forward pass through the blocks."""
    return 2.0 * body_weights(shape) * found.tokens + per_product(shape) * found.products


def head_flops(shape: Shape, found: Lengths) -> float:
    """Operations of the output head at the response tokens, one forward pass."""
    return 2.0 * shape.width * shape.vocabulary * found.scored


def least_flops(shape: Shape, found: Lengths, *, reference_online: bool) -> float:
    """Operations of full fine-tuning on these items: forward, twice as much backward, and one forward more for a
    reference that is not cached. No recomputation."""
    return (body_flops(shape, found) + head_flops(shape, found)) * (4 if reference_online else 3)


@dataclass(frozen=True, slots=True)
class Passes:
    """How often the parts of a forward pass are computed for one update of one model.

    Attributes:
        forward: extra forward passes: a live reference, an estimate.
        recompute: forward passes through the blocks that the backward pass makes again, 0 or 1.
        rank: of LoRA adapters, 0 when all weights train. Frozen weights have no gradient of their own, so that the
            backward pass of their products costs one forward pass rather than two.
    """

    forward: float = 0.0
    recompute: int = 0
    rank: int = 0


def update_flops(shape: Shape, found: Lengths, passes: Passes, *, scalar_head: bool = False) -> float:
    """Operations that one update executes, recomputation included."""
    head = 0.0 if scalar_head else head_flops(shape, found)
    matrices = 2.0 * body_weights(shape) * found.tokens
    attention = per_product(shape) * found.products
    if passes.rank:
        adapters = 2.0 * adapter_parameters(shape, passes.rank) * found.tokens
        trained = 2 * matrices + 3 * adapters + 3 * attention + 2 * head
    else:
        trained = 3 * (matrices + attention + head)
    return trained + passes.recompute * (matrices + attention) + passes.forward * (matrices + attention + head)
