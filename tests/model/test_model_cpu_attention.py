"""Attention by batched products: the bits and gradients of separate operations, and the saved tensors."""

import pytest
import torch
from helpers_models import make, random_trees
from torch import nn

from afzal.model import attention, cpu_attention
from afzal.model.attention import tree_attention
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree

WIDTH = 16
SHAPES = {
    "few": [(5, [3, 2]), (4, [6]), (1, [1, 1, 4])],
    "alone": [(9, []), (2, [3])],
    "long": [(300, [40, 7]), (260, [290])],  # causal queries in chunks
}


def row_of(shapes):
    return collate(
        [tree(str(i), [1] * p, [[2] * c for c in branches]) for i, (p, branches) in enumerate(shapes)], "shared"
    )


def drawn(n, heads, kv_heads, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, kv_heads, kv_heads, heads)
    q, k, v, up = (torch.randn(1, n, h, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for h in sizes)
    return [t.transpose(1, 2).requires_grad_() for t in (q, k, v)], up


def run(batch, given, upstream, **more):
    out, _ = tree_attention(nn.Module(), *given, None, tree=batch.layout, **more)
    return out, torch.autograd.grad(out, given, upstream)


@pytest.fixture
def always(monkeypatch):
    """Products in every number format."""
    monkeypatch.setattr(attention, "_prefers_products", lambda query, keys: query.device.type == "cpu")


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_and_gradients_are_those_of_separate_operations(shapes, heads, window, dtype, always, monkeypatch):
    batch = row_of(SHAPES[shapes])
    given, upstream = drawn(batch.n_tokens, *heads, dtype)
    own, gradients = run(batch, given, upstream, sliding_window=window)
    assert "_Products" in str(own.grad_fn.next_functions[0][0])
    monkeypatch.setattr(attention, "_by_products", lambda *_: False)
    expected, others = run(batch, given, upstream, sliding_window=window)
    assert "_Products" not in str(expected.grad_fn.next_functions[0][0])
    assert torch.equal(own, expected)
    for a, b in zip(gradients, others, strict=True):
        assert (a - b).float().norm() <= (1e-6 if dtype == torch.float32 else 1e-2) * b.float().norm()


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_gradients_are_those_of_finite_differences_and_can_be_differentiated(heads, always):
    """In float64, for a padded block and an unpadded one; slots that repeat a position pass on no gradient."""
    batch = row_of([(3, [2, 1]), (2, [2])])
    given, _ = drawn(batch.n_tokens, *heads, torch.float64)

    def out(q, k, v):
        return tree_attention(nn.Module(), q, k, v, None, tree=batch.layout)[0]

    assert torch.autograd.gradcheck(out, given)
    assert torch.autograd.gradgradcheck(out, given, fast_mode=True)


def test_by_hand(always):
    """One head of width 1: an answer of one token looks at itself and at a prompt of one token, with values 1 and 0."""
    batch = row_of([(1, [1])])
    q, k, v = (torch.tensor(t).view(1, 1, 2, 1) for t in ([1.0, 2.0], [0.5, -0.5], [0.0, 1.0]))
    out, _ = tree_attention(nn.Module(), q, k, v, None, tree=batch.layout, scaling=1.0)
    assert out.flatten().tolist() == pytest.approx([0.0, 1 / (1 + torch.tensor(2.0).exp().item())])


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_does_not_train_gets_no_gradient(frozen, always):
    batch = row_of(SHAPES["few"])
    given, upstream = drawn(batch.n_tokens, 4, 2, torch.float32)
    _, whole = run(batch, given, upstream)
    rest = [t.detach() if k == frozen else t for k, t in enumerate(given)]
    out, _ = tree_attention(nn.Module(), *rest, None, tree=batch.layout)
    out.backward(upstream)
    for k, (t, expected) in enumerate(zip(rest, whole, strict=True)):
        assert t.grad is None if k == frozen else torch.equal(t.grad, expected)


def test_keys_are_not_kept_once_per_branch(always):
    """One prompt of 40 tokens under eight branches: only inputs and weights are saved, no copies per slot."""
    batch = row_of([(40, [2] * 8)])
    given, _ = drawn(batch.n_tokens, 2, 2, torch.float32)
    kept: dict[int, int] = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        tree_attention(nn.Module(), *given, None, tree=batch.layout)
    inputs, weights = 3 * batch.n_tokens * 2 * WIDTH * 4, 2 * (40 * 40 + 8 * 2 * 42) * 4
    indices = 8 * batch.n_tokens * 2
    assert sum(kept.values()) <= inputs + weights + indices


@pytest.mark.parametrize("odd", [{"softcap": 5.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.5}])
def test_other_attention_keeps_its_own_operations(odd, always):
    batch = row_of(SHAPES["few"])
    given, _ = drawn(batch.n_tokens, 2, 2, torch.float32)
    out, _ = tree_attention(nn.Module(), *given, None, tree=batch.layout, **odd)
    assert "_Products" not in str(out.grad_fn.next_functions[0][0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-sliding"])
def test_models_in_bf16_give_the_same_log_probs_and_gradients(family, monkeypatch):
    model = make(family).to(torch.bfloat16)
    choose_sharing(model)
    batch = collate(random_trees(5), "shared")

    def gradients():
        model.zero_grad()
        logps = score(model, batch).logps
        (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
        return logps.detach(), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    calls = []
    apply = cpu_attention.attention
    monkeypatch.setattr(cpu_attention, "attention", lambda *given: calls.append(1) or apply(*given))
    own = gradients()
    assert calls
    monkeypatch.setattr(attention, "_by_products", lambda *_: False)
    expected = gradients()
    assert torch.equal(own[0], expected[0])
    assert float((own[1] - expected[1]).norm()) <= 5e-3 * float(expected[1].norm())
