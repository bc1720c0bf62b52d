"""Which query may look at which key, against the definition, for every grouping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.tokens.attention_blocks import Segment, TreeLayout, needed_part
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree

SHAPES = st.lists(
    st.tuples(st.integers(1, 7), st.lists(st.integers(1, 6), min_size=1, max_size=4)), min_size=1, max_size=5
)


def layout_of(shapes):
    trees = [tree(str(i), [1] * p, [[2] * c for c in branches]) for i, (p, branches) in enumerate(shapes)]
    batch = collate(trees, "shared")
    return batch.layout, int(batch.ids.numel())


def allowed(shapes, window):
    """bool ``[N, N]`` by definition: same tree, prompt or same branch, not later, inside the window."""
    owner, branch, position = [], [], []
    for i, (p, branches) in enumerate(shapes):
        for b, (start, n) in enumerate([(0, p), *((p, c) for c in branches)]):
            owner += [i] * n
            branch += [b] * n
            position += list(range(start, start + n))
    owner, branch, position = map(np.array, (owner, branch, position))
    behind = position[:, None] - position[None, :]
    near = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    line = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return (owner[:, None] == owner[None, :]) & line & near


def seen(plan, n):
    """How often the plan lets each position see each key; more than once is an error."""
    counts = np.zeros((n, n), dtype=int)
    slot = queries = keys = 0
    inverse = plan.inverse.numpy()
    positions = range(n) if plan.needed is None else plan.needed.tolist()
    real = dict(zip(inverse.tolist(), positions, strict=True))
    for block in plan.blocks:
        g, q, k = block.shape
        mask = block.mask if block.mask is not None else torch.ones(q, k).tril().bool()[None, None].expand(g, 1, q, k)
        assert torch.equal(block.bias.expand(g, 1, q, k) == 0, mask)
        assert bool(mask.any(-1).all()), "a softmax over nothing"
        rows = plan.keys[keys : keys + g * k].view(g, k).numpy()
        for a in range(g):
            for b in range(q):
                if slot in real:
                    assert int(plan.queries[queries + a * q + b]) == real[slot]
                    for key in rows[a][mask[a, 0, b].numpy()]:
                        counts[real[slot], key] += 1
                slot += 1
        queries, keys = queries + g * q, keys + g * k
    return counts


@settings(max_examples=60, deadline=None)
@given(
    SHAPES, st.sampled_from([None, 1, 3]), st.sampled_from([1, 10**5, 10**9]), st.sampled_from(["float32", "bfloat16"])
)
def test_every_query_sees_its_prompt_and_its_own_branch_once(shapes, window, width, dtype):
    layout, n = layout_of(shapes)
    plan = layout.plan(width, window, getattr(torch, dtype))
    assert np.array_equal(seen(plan, n), allowed(shapes, window).astype(int))


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.sampled_from([None, 1, 3]),
    st.sampled_from([1, 10**5, 10**9]),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(0, 2**30),
)
def test_every_needed_query_sees_the_same_keys(shapes, window, width, dtype, seed):
    layout, n = layout_of(shapes)
    rng = np.random.default_rng(seed)
    positions = rng.choice(n, size=rng.integers(1, n + 1), replace=True)
    part = needed_part(layout, positions)
    if part is None:
        assert len(set(positions)) > 0.9 * n
        return
    whole, plan = (p.plan(width, window, getattr(torch, dtype)) for p in (layout, part))
    rows = sorted(set(positions.tolist()))
    assert plan.needed.tolist() == rows
    expected = np.zeros((n, n), dtype=int)
    expected[rows] = allowed(shapes, window)[rows]
    assert np.array_equal(seen(plan, n), expected)
    if dtype == "float32" and width == 10**9:
        assert plan.attended <= 2 * whole.attended, "a causal block counts half of its products, one with a mask all"


def test_a_reward_model_needs_one_query_per_response():
    layout, _ = layout_of([(20, [9, 5]), (18, [8, 6])])
    part = needed_part(layout, np.array([27, 33, 33, 59, 65]))
    assert part.positions.tolist() == [27, 33, 59, 65]
    assert [(s.length, s.skipped) for s in part.segments] == [(8, 7), (5, 4), (8, 7), (6, 5)]
    assert part.plan(10**9).attended == 28 + 25 + 26 + 24
    assert needed_part(layout, np.array([], dtype=np.int64)) is None


def test_products_in_bf16_on_a_cpu_have_few_shapes():
    """Prompts of 33 to 48 tokens come as 48 slots, and their branches' keys as a multiple of 16 of each part."""
    shapes = {
        tuple(block.shape for block in layout_of([(n, [n - 20])])[0].plan(10**9, None, torch.bfloat16).blocks)
        for n in range(33, 49)
    }
    assert shapes == {((1, 48, 48), (1, 16, 64)), ((1, 48, 48), (1, 32, 80))}
    exact = [block.shape for block in layout_of([(35, [15])])[0].plan(10**9).blocks]
    assert exact == [(1, 35, 35), (1, 15, 50)]


def test_wide_models_pay_for_no_padding_and_narrow_ones_for_few_calls():
    shapes = [(20, [9, 5]), (18, [8, 6]), (11, [4, 3])]
    layout, _ = layout_of(shapes)
    narrow, wide = layout.plan(1), layout.plan(10**9)
    assert len(narrow.blocks) == 2, "all prompts in one call, all branches in another"
    assert len(wide.blocks) == 9
    exact = sum(p * (p + 1) // 2 + sum(c * (p + c) for c in branches) for p, branches in shapes)
    assert wide.attended == exact
    assert narrow.attended > exact


def test_prompts_are_causal_without_a_mask_until_a_window_cuts_them():
    layout = TreeLayout([Segment(0, 6)], 6, torch.device("cpu"))
    assert layout.plan(8).blocks[0].mask is None
    assert layout.plan(8, 6).blocks[0].mask is None
    assert layout.plan(8, 5).blocks[0].mask is not None


@pytest.mark.parametrize("pairs", [1, 8, 64])
def test_attention_products_stay_near_the_minimum(pairs):
    """UltraFeedback's mean lengths at width 512: at most half as many products again as a token may look at."""
    layout, _ = layout_of([(121, [288, 288])] * pairs)
    minimum = pairs * (121 * 122 // 2 + 2 * (288 * 121 + 288 * 289 // 2))
    assert layout.plan(512).attended <= 1.55 * minimum
