"""The last block without what no result depends on: the same results and gradients, from fewer rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers_models import SHARING_FAMILIES, make, random_trees

from afzal.model import attention
from afzal.model.last_block import compute_all, skips_unneeded
from afzal.model.load import add_lora, compile_layers
from afzal.model.logprobs import hidden_states, output_head, score
from afzal.model.probe import choose_sharing
from afzal.model.recompute import MODES, set_recompute
from afzal.model.reward import load_reward_model
from afzal.model.value import Critic, own_critic
from afzal.tokens.batch import collate
from afzal.tokens.tree import Branch, Tree, tree

TREES = random_trees(5, k=2)


def gradients(model, batch, numbers=None):
    """Log-probs (or other numbers) and the gradient of a weighted sum of them."""
    model.zero_grad()
    values = score(model, batch).token_logps if numbers is None else numbers(batch)
    (values * torch.linspace(-1, 2, len(values))).sum().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rows_through(model, name):
    """Filled by every pass with the number of rows that the parts of this name computed, block by block."""
    rows = []
    for part_name, part in model.named_modules():
        if part_name.endswith(f".{name}"):
            part.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    return rows


def needed(batch):
    return len(set(batch.predict_at.tolist()))


def compare(skipping, whole, tolerance=1e-5):
    for a, b in zip(skipping, whole, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
        assert b.norm() > 0


@pytest.mark.parametrize("family", SHARING_FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_whole_block(family):
    model = make(family)
    assert choose_sharing(model) == ("shared", "")
    assert skips_unneeded(model)
    batch = collate(TREES, "shared")
    skipping = gradients(model, batch)
    compute_all(model)
    compare(skipping, gradients(model, batch))


def test_only_needed_rows_are_computed_and_only_in_the_last_block(monkeypatch):
    model, batch = make("llama"), collate(TREES, "shared")
    choose_sharing(model)
    plans, by_blocks = [], attention._by_blocks

    def recorded(q, k, v, plan, softmax):
        plans.append(plan)
        return by_blocks(q, k, v, plan, softmax)

    monkeypatch.setattr(attention, "_by_blocks", recorded)
    rows = {name: rows_through(model, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp")}
    score(model, batch)
    n, blocks = batch.ids.numel(), model.config.num_hidden_layers
    assert 0 < needed(batch) < n / 2
    for name, computed in rows.items():
        last = n if name in ("k_proj", "v_proj") else needed(batch)
        assert computed == [n] * (blocks - 1) + [last], name
    assert [plan.needed is None for plan in plans] == [True] * (blocks - 1) + [False]
    assert plans[-1].attended < plans[0].attended


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gpt2", "phi", "gemma2"])
def test_batched_products_skip_the_same_queries(family, monkeypatch):
    monkeypatch.setattr(attention, "_prefers_products", lambda query, keys: True)
    model, batch = make(family), collate(TREES, "shared")
    choose_sharing(model)
    skipping = gradients(model, batch)
    compute_all(model)
    compare(skipping, gradients(model, batch))


def test_responses_that_are_scored_in_parts_keep_the_keys_between():
    """A scored token after unscored ones sees them, as in a dialogue whose other turns are not scored."""
    branch = Branch(np.array([5, 6, 7, 8, 9, 10]), np.array([True, False, False, True, False, False]))
    model, batch = make("llama"), collate([Tree("a", np.array([1, 2, 3, 4]), (branch,))], "shared")
    choose_sharing(model)
    rows = rows_through(model, "mlp")
    skipping = gradients(model, batch)
    assert rows[-1] == 2
    compute_all(model)
    compare(skipping, gradients(model, batch))


def test_a_long_row_is_read_in_chunks_of_queries(monkeypatch):
    monkeypatch.setattr(attention, "_prefers_products", lambda query, keys: True)
    model = make("llama", max_position_embeddings=2048)
    batch = collate([tree("a", [3] * 600, [[4, 5, 6] * 100, [7] * 20])], "shared")
    choose_sharing(model)
    skipping = gradients(model, batch)
    compute_all(model)
    compare(skipping, gradients(model, batch))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_reward_model_computes_its_ends_only(family, heads, tmp_path):
    make(family).save_pretrained(tmp_path)
    model, batch = load_reward_model(str(tmp_path), heads=heads), collate(TREES, "shared")
    assert choose_sharing(model) == ("shared", "")
    rows = rows_through(model, "mlp")
    numbers = lambda b: score(model, b).logps  # noqa: E731
    skipping = gradients(model, batch, numbers)
    assert rows[-1] == batch.n_responses
    compute_all(model)
    compare(skipping, gradients(model, batch, numbers))


@pytest.mark.parametrize("mode", MODES)
def test_recomputed_blocks_skip_the_same_rows(mode):
    model, batch = make("llama"), collate(TREES, "shared")
    choose_sharing(model)
    set_recompute(model, mode)
    rows = rows_through(model, "mlp")
    skipping = gradients(model, batch)
    assert rows.count(needed(batch)) == (1 if mode == "none" else 2)
    set_recompute(model, "none")
    compute_all(model)
    compare(skipping, gradients(model, batch))


def test_an_adapter_and_a_critic_get_the_same_gradient():
    model, batch = add_lora(make("llama"), rank=4, alpha=8), collate(TREES, "shared")
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(0))
    choose_sharing(model)
    critic = own_critic(model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(1))
    policy, values = gradients(model, batch), gradients(critic.trunk, batch, critic.values)
    compute_all(model)
    assert skips_unneeded(critic.trunk), "a copy has its own hooks"
    compute_all(critic.trunk)
    compare(policy, gradients(model, batch))
    compare(values, gradients(critic.trunk, batch, critic.values))
    assert isinstance(critic, Critic)


def test_whoever_reads_every_position_gets_every_position():
    """Also after a pass that skipped some."""
    model, batch = make("llama"), collate(TREES, "shared")
    choose_sharing(model)
    with torch.no_grad():
        score(model, batch)
        states = hidden_states(model, batch)
        compute_all(model)
        torch.testing.assert_close(states, hidden_states(model, batch), atol=0, rtol=0)
        assert output_head(model) is not None


def test_a_batch_that_needs_nearly_every_position_is_computed_whole():
    batch = collate([tree("a", [1], [[2] * 30])], "shared")
    assert batch.layout_of_predictions is None


def test_copies_skip_on_their_own():
    model = make("llama")
    choose_sharing(model)
    other, rows = copy.deepcopy(model), []
    other.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    compute_all(model)
    batch = collate(TREES, "shared")
    score(other, batch)
    assert rows == [needed(batch)]


def test_compiled_layers_see_no_hooks():
    model = make("llama")
    choose_sharing(model)
    compile_layers(model, backend="eager")
    assert not skips_unneeded(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    choose_sharing(model)
    assert not skips_unneeded(model)
