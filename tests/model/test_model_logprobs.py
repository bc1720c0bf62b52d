"""The fast path gives the same log-probs as `transformers`' own logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers_models import OTHER_FAMILIES, SHARING_FAMILIES, VOCABULARY, make, random_trees
from torch.utils._python_dispatch import TorchDispatchMode

import afzal.model.attention as attention_module
import afzal.model.logprobs as logprobs_module
import afzal.model.statistics as statistics_module
from afzal.model.attention import stock_attention, use_tree_attention
from afzal.model.logprobs import hidden_states, score
from afzal.model.probe import choose_sharing, plain_logps
from afzal.model.reference import Frozen
from afzal.model.statistics import score_with
from afzal.objectives.statistics import kl_policy_ref
from afzal.tokens.batch import collate
from afzal.tokens.tree import Branch, Tree, tree


def oracle(model, trees):
    """Each response on its own: prompt + response, no padding, stock attention, log-softmax of the full logits."""
    parts = []
    for t in trees:
        for b in t.branches:
            ids = torch.from_numpy(np.concatenate([t.prompt, b.ids]).astype(np.int64))[None]
            with torch.no_grad(), stock_attention(model):
                logps = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            tokens = logps.gather(1, ids[0, 1:, None])[len(t.prompt) - 1 :, 0]
            parts.append(tokens[torch.from_numpy(b.scored)])
    return torch.cat(parts)


@pytest.mark.parametrize("family", SHARING_FAMILIES)
def test_shared_layout_equals_plain_logits(family):
    model = make(family)
    assert choose_sharing(model) == ("shared", "")
    trees = random_trees(6, k=3)
    with torch.no_grad():
        shared = score(model, collate(trees, "shared")).token_logps
    torch.testing.assert_close(shared, oracle(model, trees), atol=1e-4, rtol=0)
    assert shared.std() > 0.1, "the test model is too uniform to tell right from wrong"


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_that_cannot_share_fall_back_and_are_exact(family):
    model = make(family)
    sharing, reason = choose_sharing(model)
    assert sharing == "unshared"
    assert model.config.model_type in reason
    trees = random_trees(5, k=2)
    with torch.no_grad():
        rows = score(model, collate(trees, "unshared")).token_logps
    torch.testing.assert_close(rows, oracle(model, trees), atol=1e-4, rtol=0)


def test_probe_notices_a_model_that_shares_wrongly(monkeypatch):
    """The trial rejects a family on the allow-list whose attention ignores the tree."""

    def deaf(module, query, key, value, mask, *args, tree=None, **kwargs):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2), None

    monkeypatch.setitem(attention_module.AttentionInterface._global_mapping, "afzal_tree", deaf)
    model = make("llama")
    sharing, reason = choose_sharing(model)
    assert sharing == "unshared"
    assert "differ by" in reason
    assert model.config._attn_implementation == "sdpa"


def test_tree_attention_refuses_a_call_without_layout():
    model = make("llama")
    use_tree_attention(model)
    with pytest.raises(ValueError, match="without a tree layout"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma2", "gpt2", "gpt_oss"])
def test_gradients_equal_between_layouts(family):
    model = make(family)
    trees = random_trees(5, k=2)

    def gradient(sharing):
        model.zero_grad()
        logps = score(model, collate(trees, sharing)).logps
        (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    unshared = gradient("unshared")
    choose_sharing(model)
    torch.testing.assert_close(gradient("shared"), unshared, atol=1e-4, rtol=1e-4)


def test_eager_and_fused_attention_agree(monkeypatch):
    model = make("llama")
    choose_sharing(model)
    batch = collate(random_trees(6), "shared")
    with torch.no_grad():
        fused = score(model, batch).token_logps
        monkeypatch.setattr(attention_module, "_prefers_products", lambda query, keys: True)
        eager = score(model, batch).token_logps
    assert not torch.equal(eager, fused), "both took the same path"
    torch.testing.assert_close(fused, eager, atol=1e-5, rtol=0)


def test_tiles_of_the_head_change_neither_value_nor_gradient(monkeypatch):
    model = make("gemma2")
    choose_sharing(model)
    batch = collate(random_trees(4), "shared")

    def run():
        model.zero_grad()
        logps = score(model, batch).token_logps
        logps.square().sum().backward()
        return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = run()
    monkeypatch.setattr(logprobs_module, "TILE_ELEMENTS", 5 * 97)
    tiled = run()
    torch.testing.assert_close(tiled[0], whole[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(tiled[1], whole[1], atol=1e-5, rtol=1e-4)


def test_the_head_runs_only_where_a_scored_token_is_predicted():
    model = make("llama")
    choose_sharing(model)
    seen = []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.numel() // out.shape[-1]))
    trees = random_trees(4)
    score(model, collate(trees, "shared"))
    assert sum(seen) <= 1 + sum(b.scored.sum() for t in trees for b in t.branches)


@pytest.mark.parametrize("sharing", ["shared", "unshared"])
def test_a_frozen_head_copies_nothing_of_its_matrix(sharing):
    """A matrix product with a view of a single row may copy the whole transposed matrix first."""
    model = make("llama")
    if sharing == "shared":
        choose_sharing(model)
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_()  # so that the hidden states have gradients, as with LoRA
    batch = collate(random_trees(4), sharing)

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten.bmm):
                sizes.append(max(a.numel() for a in args if isinstance(a, torch.Tensor)))
            return made

    sizes: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda *_: sizes.clear())  # of earlier tensors, in attention
    for grad in (True, False):
        with torch.set_grad_enabled(grad), Copies():
            hidden_states(model, batch)
        assert max(sizes, default=0) < model.lm_head.weight.numel()


def test_without_gradients_statistics_come_from_small_tiles(monkeypatch):
    """Two models that differ: log-probs and the exact KL do not depend on the tiles."""
    model, other = make("llama"), make("llama", seed=1)
    for one in (model, other):
        choose_sharing(one)
    batch = collate(random_trees(4), "shared")
    whole = score_with(model, Frozen(other), batch, [(kl_policy_ref, {})])
    monkeypatch.setattr(statistics_module, "_TILE_BYTES_UNTRAINED", 4 * 5 * VOCABULARY)
    monkeypatch.setattr(statistics_module, "_CACHED_ELEMENTS", 2 * VOCABULARY // torch.get_num_threads())
    sizes, tiled = [], statistics_module.tiled
    monkeypatch.setattr(statistics_module, "tiled", lambda *a, rows: sizes.append(rows) or tiled(*a, rows=rows))
    with torch.no_grad():
        few = score_with(model, Frozen(other), batch, [(kl_policy_ref, {})])
    whole_tiles, rest = divmod(len(batch.target), 5)
    assert sizes == [5] + [2] * (whole_tiles + (rest > 0))
    for a, b in zip(whole, few, strict=True):
        torch.testing.assert_close(b.token_logps, a.token_logps.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(b.token_logps, score(model if a is whole[0] else other, batch).token_logps.detach())
    kl = few[0].extras["kl_policy_ref"]
    torch.testing.assert_close(kl, whole[0].extras["kl_policy_ref"], atol=1e-6, rtol=0)
    assert (kl > 1e-3).all()


def test_unscored_tokens_are_context_but_not_counted():
    model = make("llama")
    choose_sharing(model)
    ids = np.array([5, 6, 7, 8, 9], dtype=np.int32)
    scored = np.array([True, False, False, True, True])
    masked = Tree("a", np.array([3, 4], np.int32), (Branch(ids, scored),))
    plain = tree("a", [3, 4], [ids])
    with torch.no_grad():
        few, all_ = (score(model, collate([t], "shared")) for t in (masked, plain))
    torch.testing.assert_close(few.token_logps, all_.token_logps[torch.from_numpy(scored)])
    assert few.lengths.tolist() == [3.0]


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(3, 97, n).astype(np.int32)


def test_neighbours_in_a_pack_change_nothing_at_all():
    """Perturb the neighbour's prompt or an answer 1,000 times: a tree's own log-probs are identical bit for bit."""
    model = make("llama")
    choose_sharing(model)
    own, other = random_trees(2, seed=3)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        before = score(model, collate([own, other], "shared")).token_logps
        n = sum(len(b.ids) for b in own.branches)
        for trial in range(1000):
            if trial % 2:
                changed = dataclasses.replace(other, prompt=draw(rng, len(other.prompt)))
            else:
                first, *rest = other.branches
                again = dataclasses.replace(first, ids=draw(rng, len(first.ids)))
                changed = dataclasses.replace(other, branches=(again, *rest))
            pair = [changed, own] if trial % 4 > 1 else [own, changed]
            after = score(model, collate(pair, "shared")).token_logps
            mine, theirs = (after[-n:], after[:-n]) if trial % 4 > 1 else (after[:n], after[n:])
            assert torch.equal(mine, before[:n])
            assert not torch.equal(theirs, before[n:])


def test_prompt_tokens_carry_no_gradient_of_their_own():
    """Only the last layer's output at predicting positions is used: the loss does not depend on prompt targets."""
    model = make("llama")
    choose_sharing(model)
    batch = collate(random_trees(3), "shared")
    prompts = {int(i) for i in batch.predict_at}
    for t, start in zip(random_trees(3), [0], strict=False):
        assert prompts.isdisjoint(range(start, start + len(t.prompt) - 1))


def test_bf16_stays_near_fp32():
    model = make("llama")
    choose_sharing(model)
    batch = collate(random_trees(4), "shared")
    with torch.no_grad():
        exact = score(model, batch).token_logps
        low = score(model.to(torch.bfloat16), batch).token_logps
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.3


def test_plain_logps_is_the_same_oracle_padded():
    model = make("gpt2")
    trees = random_trees(4)
    with torch.no_grad():
        padded = plain_logps(model, collate(trees, "unshared"))
    torch.testing.assert_close(padded, oracle(model, trees), atol=1e-5, rtol=0)
