"""RMSNorms on a CPU: the bits and gradients of `transformers`' forward pass, with fewer saved tensors."""

import copy

import pytest
import torch
from helpers_models import make

from afzal.model import norms
from afzal.model.load import compile_layers, load_model
from afzal.model.norms import fuse_norms

FAMILIES = ["llama", "qwen2", "qwen3", "mistral-sliding", "mixtral", "phi3", "granite", "smollm3"]


def norms_of(model):
    return [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]


def run(layer, x, upstream):
    given = [x.clone().requires_grad_(), *layer.parameters()]
    out = layer(given[0])
    return out, torch.autograd.grad(out, given, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_bits_and_gradients_are_those_of_the_class(family, dtype, monkeypatch):
    layer = norms_of(make(family))[0].to(dtype)
    width, drawn = layer.weight.shape[0], torch.Generator().manual_seed(0)
    layer.weight.data.copy_(torch.randn(width, generator=drawn))
    x, upstream = (torch.randn(3, 41, width, generator=drawn).to(dtype) * 2 for _ in range(2))
    monkeypatch.setattr(norms, "_CACHED_ELEMENTS", 20 * width)  # several blocks, the last one short
    expected, gradients = run(layer, x, upstream)
    fuse_norms(layer)
    out, own = run(layer, x, upstream)
    assert "RMSNorm" in type(out.grad_fn).__name__
    assert torch.equal(out, expected)
    for a, b in zip(own, gradients, strict=True):
        assert (a - b).float().norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * b.float().norm()


def test_by_hand():
    layer = norms_of(make("llama"))[0]
    width = layer.weight.shape[0]
    fuse_norms(layer)
    x = torch.zeros(1, 1, width)
    x[0, 0, :2] = torch.tensor([3.0, 4.0])
    root = (25 / width + layer.variance_epsilon) ** -0.5
    out, (of_x, of_weight) = run(layer, x, torch.ones_like(x))
    assert out[0, 0, 0].item() == pytest.approx(3 * root, rel=1e-6)
    # the sum of all outputs is (x0 + x1) r, and r = ((x0^2 + x1^2) / d + eps)^-1/2 has the slope -x r^3 / d
    expected = [root - x_i * 7 * root**3 / width for x_i in (3.0, 4.0, 0.0)]
    assert of_x[0, 0, :3].tolist() == pytest.approx(expected, rel=1e-4)
    assert of_weight[:3].tolist() == pytest.approx([3 * root, 4 * root, 0.0])


def test_the_gradient_can_be_differentiated():
    layer = norms_of(make("llama"))[0]
    fused = copy.deepcopy(layer)
    fuse_norms(fused)
    assert fused.forward.layer is fused
    x = torch.randn(2, 5, layer.weight.shape[0], generator=torch.Generator().manual_seed(1))
    second = []
    for norm in (layer, fused):
        given = [x.clone().requires_grad_(), norm.weight]
        slopes = torch.autograd.grad(norm(given[0]).sin().sum(), given, create_graph=True)
        second.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), given))
    for own, expected in zip(second[1], second[0], strict=True):
        assert torch.allclose(own, expected, rtol=1e-4, atol=1e-5)


def test_no_rows_have_no_norm():
    layer = norms_of(make("llama"))[0]
    fuse_norms(layer)
    out, (of_x, of_weight) = run(layer, x := torch.zeros(0, layer.weight.shape[0]), x)
    assert out.shape == of_x.shape == x.shape
    assert not of_weight.any()


def test_a_frozen_weight_gets_no_gradient_and_an_input_without_one_none():
    layer = norms_of(make("llama"))[0].requires_grad_(False)
    fuse_norms(layer)
    x = torch.randn(4, layer.weight.shape[0], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("family", ["gemma", "gemma2", "olmo2"])
def test_another_norm_keeps_its_own_way(family):
    model = make(family).to(torch.bfloat16)
    fuse_norms(model)
    layer = norms_of(model)[0]
    x = torch.randn(2, 3, layer.weight.shape[0], dtype=torch.bfloat16, requires_grad=True)
    assert "RMSNorm" not in type(layer(x).grad_fn).__name__
    assert torch.equal(layer(x), type(layer).forward(layer, x))


def test_a_copy_is_of_its_own_and_a_compiler_gets_the_class(tmp_path):
    make("llama").save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    other = copy.deepcopy(model)
    with torch.no_grad():
        norms_of(other)[0].weight.mul_(2)
    assert norms_of(other)[0].forward.layer is norms_of(other)[0]
    assert not torch.equal(norms_of(other)[0].weight, norms_of(model)[0].weight)
    compile_layers(model, backend="eager")
    assert not any("forward" in vars(m) for m in norms_of(model))
