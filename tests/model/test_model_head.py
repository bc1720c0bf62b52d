"""The log-prob head with its own backward pass, against autograd over the whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afzal.model import head
from afzal.model.head import is_plain, linear_logps


def given(rows=7, features=5, vocabulary=11, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, features, dtype=dtype, requires_grad=True)
    shift = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, shift, torch.randint(0, vocabulary, (rows,))


def oracle(hidden, weight, bias, target, scale=1.0, cap=None):
    logits = (hidden @ weight.t() + (0 if bias is None else bias)).double() * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]


def gradients(fn, tensors, upstream):
    wanted = [t for t in tensors if t is not None]
    return torch.autograd.grad((fn().double() * upstream).sum(), wanted)


@pytest.mark.parametrize("keep", [2**30, 0], ids=["kept", "made-again"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (1.0, 2.0), (0.5, 2.0)])
def test_values_and_gradients_equal_those_of_autograd(scale, cap, bias, keep, monkeypatch):
    monkeypatch.setattr(head, "TILE_ELEMENTS", 33)  # tiles of three rows, the last one shorter
    monkeypatch.setattr(head, "KEEP_BYTES", keep)
    *tensors, target = given(dtype=torch.float32, bias=bias)
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    found = linear_logps(*tensors, target, scale=scale, cap=cap)
    expected = oracle(*tensors, target, scale, cap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    ours = gradients(lambda: linear_logps(*tensors, target, scale=scale, cap=cap), tensors, upstream)
    theirs = gradients(lambda: oracle(*tensors, target, scale, cap), tensors, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_do():
    hidden, weight, _, target = given(dtype=torch.float32)
    linear_logps(hidden, weight.detach(), None, target).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert float(hidden.grad.abs().sum()) > 0


@pytest.mark.parametrize("keep", [2**30, 0], ids=["kept", "made-again"])
def test_bf16_sums_in_float32(keep, monkeypatch):
    """At 4,096 rows and V = 1,000 the log-probs agree with float64 from the same bf16 logits to 1e-4 nats a token."""
    monkeypatch.setattr(head, "KEEP_BYTES", keep)
    hidden, weight, _, target = given(4096, 16, 1000, torch.bfloat16, bias=False)
    exact = torch.nn.functional.linear(hidden, weight).double().log_softmax(-1).gather(1, target[:, None])[:, 0]
    found = linear_logps(hidden, weight, None, target)
    assert float((found.double() - exact).abs().max()) < 1e-4
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_a_second_backward_through_the_same_graph_gives_the_same_gradients():
    hidden, weight, _, target = given(dtype=torch.float32, bias=False)
    total = linear_logps(hidden, weight, None, target).sum()
    first = torch.autograd.grad(total, [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(total, [hidden, weight])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    found = linear_logps(hidden, weight, None, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([0.0, -2e4])
    found.sum().backward()
    assert bool(hidden.grad.isfinite().all() & weight.grad.isfinite().all())


def test_only_a_plain_linear_layer_is_taken_apart():
    layer = nn.Linear(3, 5)
    assert is_plain(layer)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer)
    handle.remove()
    assert not is_plain(nn.Sequential(layer))
    assert not is_plain(type("Adapted", (nn.Linear,), {})(3, 5))
