"""Lengths by hand, and operations as counted by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_models import make
from torch.utils.flop_counter import FlopCounterMode

from afzal.plan import lengths, shape_of
from afzal.plan.flops import Passes, body_flops, head_flops, least_flops, update_flops


def test_lengths_of_one_pair_by_hand():
    shared = lengths(np.array([[3, 2, 4]]))
    assert (shared.items, shared.tokens, shared.scored, shared.longest) == (1, 9, 6, 9)
    assert shared.keys == 3 + (3 + 2) + (3 + 4)
    # the prompt: 1 + 2 + 3; two tokens after it: 4 + 5; four tokens after it: 4 + 5 + 6 + 7
    assert shared.products == 6 + 9 + 22
    assert shared.dense == 3 * 3 + 2 * (3 + 2) + 4 * (3 + 4)
    apart = lengths(np.array([[3, 2, 4]]), shared=False)
    assert (apart.tokens, apart.scored, apart.longest) == (12, 6, 12)
    assert apart.products == 15 + 28
    assert apart.dense == 5 * 5 + 7 * 7


def test_an_item_with_fewer_responses_has_zeros():
    for shared in (True, False):
        both = lengths(np.array([[3, 2, 4], [5, 1, 0]]), shared=shared)
        one, other = (lengths(np.array(c), shared=shared) for c in ([[3, 2, 4]], [[5, 1]]))
        for name in ("items", "tokens", "scored", "keys", "products", "dense"):
            assert getattr(both, name) == getattr(one, name) + getattr(other, name), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-sliding", "gemma"])
def test_matrix_products_are_those_torch_counts(family: str):
    model = make(family, sliding_window=64) if family == "mistral-sliding" else make(family)
    model.set_attn_implementation("eager")
    tokens = 24
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, tokens, dtype=torch.long)).logits.sum().backward()
    shape = shape_of(model.config.to_dict())
    batch = lengths(np.array([[0, tokens]]))
    # eager attention computes all pairs, and its rotary angles take a product of a row of positions
    attention = 4 * shape.layers * shape.heads * shape.head_width
    expected = 3 * (body_flops(shape, batch) + head_flops(shape, batch) + attention * (tokens**2 - batch.products))
    rotary = tokens * shape.head_width * 2
    assert counter.get_total_flops() == pytest.approx(expected, abs=2 * rotary)


def test_the_head_reads_response_tokens_alone():
    """5 items of 17 response tokens: 2 operations for each weight of the head and each of the 85 tokens."""
    shape = shape_of(make("llama").config.to_dict())
    short, long = (lengths(np.array([[prompt, 8, 9]] * 5)) for prompt in (1, 300))
    assert head_flops(shape, short) == head_flops(shape, long) == 2 * 32 * 97 * 85


def test_passes_add_up():
    shape = shape_of(make("llama").config.to_dict())
    batch = lengths(np.array([[30, 8, 9]] * 5))
    forward = body_flops(shape, batch) + head_flops(shape, batch)
    assert least_flops(shape, batch, reference_online=False) == pytest.approx(3 * forward)
    assert least_flops(shape, batch, reference_online=True) == pytest.approx(4 * forward)
    assert update_flops(shape, batch, Passes(forward=1.0)) == pytest.approx(4 * forward)
    again = update_flops(shape, batch, Passes(recompute=1)) - update_flops(shape, batch, Passes())
    assert again == pytest.approx(body_flops(shape, batch))
    adapters = update_flops(shape, batch, Passes(rank=1)) / forward
    assert 2 < adapters < 3
