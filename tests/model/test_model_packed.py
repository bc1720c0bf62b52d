"""Packed layers: the same numbers as plain ones, used only without training, and removed at the end."""

import pytest
import torch
from helpers_models import make
from torch import nn

from afzal.generate import Sampling, sample
from afzal.model import packed as module
from afzal.model.packed import packed

WIDE, NARROW = 320, 256
pytestmark = pytest.mark.skipif(not module._is_fast(torch.float32), reason="this torch is built without oneDNN")


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(NARROW, WIDE), nn.Linear(WIDE, NARROW, bias=False), nn.Linear(NARROW, 4))


def packed_now(layers):
    return [isinstance(vars(m).get("forward"), module._Packed) and m.forward.weight is not None for m in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_give_what_plain_ones_give(layers, dtype):
    if not module._is_fast(dtype):
        pytest.skip(f"no fast products in {dtype} on this processor")
    layers = layers.to(dtype)
    shapes = [(1, 8, NARROW), (3, NARROW), (2, 3, 5, NARROW), (1, 1, NARROW), (1, 0, NARROW)]
    with torch.no_grad(), packed(layers):
        for _ in range(4):
            layers(torch.zeros(1, NARROW, dtype=dtype))
        assert packed_now(layers) == [False] * 3
        for shape in shapes:
            x = torch.randn(shape).to(dtype)
            outputs = layers(x)
            assert packed_now(layers) == [True, True, False]  # the last one is too small to be worth it
            with pytest.MonkeyPatch.context() as patch:
                for layer in layers[:2]:
                    patch.delitem(vars(layer), "forward")
                torch.testing.assert_close(outputs, layers(x), rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-6)
    assert not any("forward" in vars(m) for m in layers)


def test_with_gradients_the_layer_is_the_plain_one(layers):
    x = torch.randn(2, NARROW, requires_grad=True)
    with packed(layers):
        with torch.no_grad():
            for _ in range(6):
                layers(x)
        layers(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert layers[0].weight.grad is not None


def test_hooks_run_and_an_inner_block_leaves_the_outer_alone(layers):
    seen = []
    layers[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad(), packed(layers):
        for _ in range(5):
            layers(torch.zeros(1, NARROW))
        with packed(layers):
            layers(torch.zeros(1, NARROW))
        assert packed_now(layers) == [True, True, False]
    assert len(seen) == 6


@pytest.mark.parametrize(("memory", "ranks", "fits"), [(6e6, "1", True), (5e6, "1", False), (6e6, "2", False)])
def test_copies_take_an_eighth_of_the_machines_memory_at_most(layers, monkeypatch, memory, ranks, fits):
    """Of the two larger layers: 2 x 320 x 256 numbers of four bytes are 655,360 bytes, of the machine's 5.2 million."""
    monkeypatch.setattr(module, "memory_bytes", lambda: int(memory))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert bool(module._layers(layers)) is fits


def test_compiled_layers_are_left_to_the_compiler(layers):
    assert module._layers(layers)
    layers[0].compile(backend="eager")
    assert module._layers(layers) == []


@pytest.mark.parametrize("decoding", ["shared", "stock"])
def test_answers_are_those_of_plain_layers(monkeypatch, decoding):
    model, asked = make("llama"), [[5, 6, 7], [12, 13]]
    how = {"eos": [2], "n": 2, "sampling": Sampling(max_new_tokens=12), "decoding": decoding}
    plain = sample(model, asked, **how)
    monkeypatch.setattr(module, "_LEAST", 0)
    made, reorder = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: made.append(rows) or reorder(weight, rows)
    )
    answers = sample(model, asked, **how)
    assert made == [4] * len([m for m in model.modules() if type(m) is nn.Linear])
    assert [s.ids.tolist() for s in answers] == [s.ids.tolist() for s in plain]
    for a, b in zip(answers, plain, strict=True):
        assert a.logps.tolist() == pytest.approx(b.logps.tolist(), abs=1e-5)
