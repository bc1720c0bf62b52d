"""GPU attention kernels tested on a CPU: metadata, mathematics with stand-ins, and which kernel is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_kernels import flash_by_definition, top_left
from helpers_models import make, random_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from afzal.model import kernels
from afzal.model.attention import _attend, _grouped, _Softmax
from afzal.model.kernels import choose, flex, ragged, trials
from afzal.model.kernels.spans import visible
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.tokens.attention_blocks import Block, Segment, TreeLayout
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree

CPU = torch.device("cpu")
JOB = choose.Job(CPU, torch.bfloat16, heads=4, kv_heads=2, width=16, scale=0.25)
SHAPES = st.lists(
    st.tuples(st.integers(1, 7), st.lists(st.integers(1, 6), min_size=1, max_size=4)), min_size=1, max_size=5
)


def layout_of(shapes) -> TreeLayout:
    trees = [tree(str(i), [1] * p, [[2] * c for c in branches]) for i, (p, branches) in enumerate(shapes)]
    layout = collate(trees, "shared").layout
    assert layout is not None
    return layout


def by_definition(shapes, window):
    """bool ``[N, N]``: same tree, prompt or same branch, not later, inside the window."""
    rows = []
    for i, (p, branches) in enumerate(shapes):
        for b, (start, n) in enumerate([(0, p), *((p, c) for c in branches)]):
            rows += [(i, b, at) for at in range(start, start + n)]
    owner, branch, position = np.array(rows).T
    behind = position[:, None] - position[None, :]
    near = (behind >= 0) & (behind < (window or 10**9))
    line = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return (owner[:, None] == owner[None, :]) & line & near


def random_qkv(layout: TreeLayout, heads=4, kv_heads=2, width=16, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = ((layout.n_tokens, n, width) for n in (heads, kv_heads, kv_heads))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.sampled_from([None, 1, 3]))
def test_two_runs_of_positions_say_what_a_query_sees(shapes, window):
    assert np.array_equal(visible(layout_of(shapes), window), by_definition(shapes, window))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.sampled_from([None, 1, 3]))
def test_ragged_sequences_give_attention_by_definition(shapes, window):
    layout = layout_of(shapes)
    q, k, v = random_qkv(layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "flash", flash_by_definition)
        result = ragged.attend(q, k, v, layout, scale=0.25, window=window)
    expected = choose.plain(q, k, v, layout, replace(JOB, window=window))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_ragged_keys_are_copied_for_further_branches_only():
    one, three = layout_of([(5, [3]), (2, [4])]), layout_of([(5, [3, 1, 2]), (2, [4])])
    assert ragged.sequences(one).keys is None
    cut = ragged.sequences(three)
    assert cut.keys is not None
    assert len(cut.keys) == three.n_tokens + 2 * 5
    assert cut.query_ends.tolist() == [0, 8, 9, 11, 17]
    assert cut.key_ends.tolist() == [0, 8, 14, 21, 27]
    assert (cut.longest_query, cut.longest_key) == (8, 8)
    assert cut.keys[8:14].tolist() == [0, 1, 2, 3, 4, 8]


def test_a_prompt_alone_is_a_sequence_of_its_own():
    layout = TreeLayout([Segment(0, 3), Segment(3, 2), Segment(5, 4, 3, 2)], 9, CPU)
    assert ragged.sequences(layout).query_ends.tolist() == [0, 3, 9]


def test_the_true_flash_attention_takes_what_it_is_given():
    """Argument names and count against torch's signature and shape rule; the values need a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    layout = layout_of([(5, [3, 2]), (2, [4])])
    meta = TreeLayout(layout.segments, layout.n_tokens, torch.device("meta"))
    q, k, v = (t.to("meta", torch.bfloat16) for t in random_qkv(layout))
    assert ragged.attend(q, k, v, meta, scale=0.25, window=3).shape == q.shape
    assert "window_size" in varlen_attn.__kwdefaults__


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.sampled_from([None, 1, 3]))
def test_pairs_per_block_count_what_is_seen(shapes, window):
    layout = layout_of(shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", 4)
        counts = flex.pairs_per_block(flex.spans(layout, window), layout.n_tokens)
    n = -(-layout.n_tokens // 4) * 4
    padded = np.zeros((n, n), dtype=int)
    padded[: layout.n_tokens, : layout.n_tokens] = visible(layout, window)
    assert np.array_equal(counts, padded.reshape(n // 4, 4, n // 4, 4).sum((1, 3)))


@pytest.mark.parametrize("window", [None, 50])
def test_the_block_mask_is_the_one_that_torch_would_make_of_all_pairs(window):
    from torch.nn.attention.flex_attention import create_block_mask

    layout = TreeLayout(choose._TRIAL, 467, CPU)
    ours = flex.block_mask(layout, window)
    theirs = create_block_mask(ours.mask_mod, 1, 1, 467, 467, device="cpu")
    assert ours.shape == theirs.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_a_block_that_is_seen_whole_is_listed_as_whole():
    mask = flex.block_mask(layout_of([(384, [10, 20])]))  # the last block of queries is not full
    assert mask.full_kv_num_blocks.flatten().tolist() == [0, 1, 2, 0]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 50])
def test_flex_attention_gives_attention_by_definition(window, softcap):
    layout = TreeLayout(choose._TRIAL, 467, CPU)
    q, k, v = random_qkv(layout)
    with torch.no_grad():  # it has no backward pass on a CPU
        result = flex.attend(q, k, v, layout, scale=0.25, window=window, softcap=softcap)
    expected = choose.plain(q, k, v, layout, replace(JOB, window=window, softcap=softcap))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_metadata_is_made_once_for_all_layers(monkeypatch):
    layout, made = layout_of([(5, [3, 2])]), []
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    monkeypatch.setattr(ragged, "sequences", lambda layout, make=ragged.sequences: made.append(1) or make(layout))
    for _ in range(3):
        ragged.attend(*random_qkv(layout), layout, scale=0.25, window=None)
    assert len(made) == 1


@pytest.fixture
def standing_in(monkeypatch):
    """The ragged kernel by its definition, in any number format, forced on every layer."""
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    monkeypatch.setattr(ragged, "why_unable", lambda dtype, width: "")
    with kernels.forced("ragged"):
        yield


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gpt2", "gemma3"])
def test_a_model_with_the_ragged_kernel_equals_the_unshared_path(family, standing_in):
    model = make(family)
    trees = random_trees(5, k=3)

    def run(sharing):
        model.zero_grad()
        logps = score(model, collate(trees, sharing)).token_logps
        (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
        return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    unshared = run("unshared")
    assert choose_sharing(model)[0] == "shared"
    for actual, expected in zip(run("shared"), unshared, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma2", "gemma3"])
def test_a_model_with_flex_attention_equals_the_unshared_path(family):
    wide = {"head_dim": 16} if "head_dim" in make(family).config.to_dict() else {"num_attention_heads": 2}
    model = make(family, **wide)
    trees = random_trees(5, k=3)
    with torch.no_grad():
        unshared = score(model, collate(trees, "unshared")).token_logps
        with kernels.forced("flex"):
            assert choose_sharing(model)[0] == "shared"
            shared = score(model, collate(trees, "shared")).token_logps
    torch.testing.assert_close(shared, unshared, atol=1e-4, rtol=0)


@pytest.fixture
def fresh(monkeypatch):
    """Kernels that have not been tried yet, on a CPU that accepts them."""
    choose._tried.cache_clear()
    monkeypatch.setattr(trials, "_passed_over", {})
    monkeypatch.setattr(choose, "_PREFERENCE", {("cpu", True): ("ragged",)})
    yield
    choose._tried.cache_clear()


def test_a_kernel_that_shows_that_it_agrees_is_used(fresh, monkeypatch):
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    assert kernels.kernel_for(JOB) == "ragged"
    assert kernels.kernel_for(replace(JOB, window=7)) == "ragged"
    assert kernels.notes() == ()


def test_a_kernel_with_the_other_alignment_is_found_out(fresh, monkeypatch):
    monkeypatch.setattr(ragged, "flash", top_left)
    assert kernels.kernel_for(JOB) == "blocks"
    (note,) = kernels.notes()
    assert "attention kernel ragged is not used: off by" in note


def test_a_kernel_that_cannot_run_is_passed_over_with_its_reason(fresh):
    assert kernels.kernel_for(JOB) == "blocks"
    (note,) = kernels.notes()
    assert "attention kernel ragged is not used: NotImplementedError" in note


def test_a_trial_moves_no_generator_and_asks_no_gradient_of_the_caller(fresh, monkeypatch):
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert kernels.kernel_for(JOB) == "ragged"
    assert torch.equal(torch.get_rng_state(), before)


class Watching(TorchDispatchMode):
    """Records every operation, like a checkpoint that keeps some of the results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_trial_is_no_part_of_the_layer_that_caused_it(fresh, monkeypatch):
    """A checkpoint recomputes the layer without the trial, so kept results would be matched to the wrong operations."""
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    kept = []
    with Watching() as watching, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        assert kernels.kernel_for(JOB) == "ragged"
    assert watching.seen == []
    assert kept == []


def test_what_kernels_do_not_have_goes_to_the_blocks(fresh, monkeypatch):
    monkeypatch.setattr(ragged, "flash", flash_by_definition)
    for odd in ({"unsupported": True}, {"softcap": 30.0}, {"width": 12}, {"dtype": torch.float32}):
        assert kernels.kernel_for(replace(JOB, **odd)) == "blocks", odd
    assert kernels.notes() == ()


def test_on_a_gpu_16_bits_take_ragged_sequences_and_soft_caps_take_flex(monkeypatch):
    monkeypatch.setattr(choose, "_tried", lambda kernel, job: "")
    on = replace(JOB, device=torch.device("cuda"))
    assert kernels.kernel_for(on) == "ragged"
    assert kernels.kernel_for(replace(on, softcap=30.0)) == "flex"
    assert kernels.kernel_for(replace(on, unsupported=True)) == "blocks"
    assert kernels.kernel_for(replace(on, dtype=torch.float32)) == "blocks"


def test_a_forced_kernel_that_cannot_do_the_job_is_refused():
    with kernels.forced("ragged"), pytest.raises(ValueError, match=r"'ragged' cannot be used here: .* not in float32"):
        kernels.kernel_for(replace(JOB, dtype=torch.float32))
    assert kernels.kernel_for(JOB) == "blocks"


def test_the_tolerance_tells_a_wrong_mask_from_rounding():
    """A causal mask over the whole row lets branches see each other; its error is far above the tolerance."""
    layout = TreeLayout(choose._TRIAL, 467, CPU)
    q, k, v = random_qkv(layout)
    right = choose.plain(q, k, v, layout, JOB)
    wrong = choose.plain(q, k, v, TreeLayout([Segment(0, 467)], 467, CPU), JOB)
    assert float((right - wrong).norm() / right.norm()) > 5 * max(choose._TOLERANCE.values())


def test_grouped_heads_in_blocks_share_their_keys_and_give_the_same():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 8, 5, 16), torch.randn(3, 2, 9, 16), torch.randn(3, 2, 9, 16)
    mask = torch.rand(3, 1, 5, 9) > 0.3
    mask[..., 0] = True
    how, block = _Softmax(0.25, 0.0, None, None), Block((3, 5, 9), mask, CPU)
    torch.testing.assert_close(_grouped(q, k, v, mask, how), _attend(q, k, v, block, how))


def test_the_compiled_form_is_asked_for_once():
    assert flex._compiled_kernel() is flex._compiled_kernel()
    assert flex._capped(30.0) is flex._capped(30.0)
