"""The log-prob head with its own backward pass, against autograd over the full logits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from afzal.model import head
from afzal.model.head import is_plain, linear_logps
from afzal.model.kernels import logits as fused
from afzal.model.kernels import trials


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
    monkeypatch.setattr(head, "_CACHED_ELEMENTS", 22)  # read in pairs
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(head, "KEEP_BYTES", keep)
    *tensors, target = given(dtype=torch.float32, bias=bias)
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    logps = linear_logps(*tensors, target, scale=scale, cap=cap)
    expected = oracle(*tensors, target, scale, cap)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected, atol=1e-6, rtol=1e-6)
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
    logps = linear_logps(hidden, weight, None, target)
    assert float((logps.double() - exact).abs().max()) < 1e-4
    logps.sum().backward()
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
    logps = linear_logps(hidden, weight, None, torch.tensor([0, 0]))
    assert logps.tolist() == pytest.approx([0.0, -2e4])
    logps.sum().backward()
    assert bool(hidden.grad.isfinite().all() & weight.grad.isfinite().all())


def test_only_a_plain_linear_layer_is_taken_apart():
    layer = nn.Linear(3, 5)
    assert is_plain(layer)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer)
    handle.remove()
    assert not is_plain(nn.Sequential(layer))
    assert not is_plain(type("Adapted", (nn.Linear,), {})(3, 5))


def test_an_expanded_gradient_is_no_other_gradient():
    """``sum`` passes back one expanded number for all rows; a kernel must not read it as contiguous memory."""
    hidden, weight, _, target = given(dtype=torch.float32)
    upstream = torch.ones(())
    gradients = torch.autograd.grad(linear_logps(hidden, weight, None, target), weight, upstream.expand(7))
    expected = torch.autograd.grad(linear_logps(hidden, weight, None, target), weight, torch.ones(7))
    assert torch.equal(gradients[0], expected[0])


@pytest.fixture
def interpreted(monkeypatch):
    """Triton's kernels on a CPU, through its interpreter, in blocks that the vocabulary does not fill."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "Triton must be told before it is imported: see the test that starts these in a process of their own"
        )
    monkeypatch.setattr(fused, "_BLOCK", 8)
    fused._kernels.cache_clear()
    yield
    fused._kernels.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_by_the_interpreter_agree_with_autograd(dtype, interpreted):
    assert fused.trial(torch.device("cpu"), dtype) <= fused._TOLERANCE[dtype]


@pytest.mark.parametrize("keep", [2**30, 0], ids=["kept", "made-again"])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 2.0)])
def test_the_head_over_the_kernels_gives_what_it_gives_without(scale, cap, keep, interpreted, monkeypatch):
    monkeypatch.setattr(head, "TILE_ELEMENTS", 33)
    monkeypatch.setattr(head, "KEEP_BYTES", keep)
    *tensors, target = given(dtype=torch.float32)
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    run = lambda: linear_logps(*tensors, target, scale=scale, cap=cap)  # noqa: E731
    expected, theirs = run(), gradients(run, tensors, upstream)
    monkeypatch.setattr(fused, "fused", lambda logits: True)
    result, ours = run(), gradients(run, tensors, upstream)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_kernels_are_interpreted_in_a_process_of_their_own():
    pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for GPUs")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is that process")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "kernels_by or over_the_kernels",
        __file__,
    ]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


def test_a_tile_of_a_cpu_is_never_for_the_kernels():
    assert not fused.fused(torch.zeros(2, 3))


def test_kernels_that_cannot_run_are_passed_over_with_their_reason(monkeypatch):
    monkeypatch.setattr(trials, "_passed_over", {})
    monkeypatch.setattr(fused, "trial", lambda device, dtype: 1.0)
    fused._tried.cache_clear()
    assert fused._tried(torch.device("cpu"), torch.bfloat16)
    fused._tried.cache_clear()
    assert trials.notes() == (
        "the fused log-prob head is not used: off by 1 of the size of the result, more than 0.01",
    )


@pytest.mark.parametrize("kernel", [0, 1])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(kernel):
    """To machine code for an H100 or H200: the interpreter accepts code that the compiler refuses."""
    triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for GPUs")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("functions that are interpreted are not compiled")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    order = fused._kernels()[kernel].arg_names
    kinds = ["*bf16", "*i64", "*fp32", "*fp32", "i64", "fp32", "fp32", *["constexpr"] * 3]
    constants = {"vocabulary": 128256, "capped": True, "block": fused._BLOCK}
    source = ASTSource(
        fused._kernels()[kernel],
        dict(zip(order, kinds, strict=True)),
        {(order.index(n),): v for n, v in constants.items()},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert len(made.asm["cubin"]) > 1000


def test_logits_of_minus_infinity_take_no_share_and_no_rows_give_no_log_probs():
    hidden, weight, _, target = given(dtype=torch.float32, bias=False)
    bias = torch.zeros(len(weight))
    bias[[i for i in range(len(weight)) if i not in set(target.tolist())][:2]] = -torch.inf
    logps = linear_logps(hidden, weight, bias, target)
    torch.testing.assert_close(logps.double(), oracle(hidden, weight, bias, target), atol=1e-6, rtol=1e-6)
    none = linear_logps(hidden[:0], weight, None, target[:0])
    none.sum().backward()
    assert len(none) == 0
    assert float(weight.grad.abs().sum()) == 0.0
