"""The trial of bf16 on a CPU: its speed by a clock that is ours, and models that rounding changes little or much."""

from typing import Any

import pytest
import torch
from helpers_models import make

from afzal.model import number_format
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.number_format import bf16_speedup, survives_rounding
from afzal.model.probe import choose_sharing


@pytest.mark.parametrize(("fp32", "bf16", "expected"), [(6.0, 1.5, 4.0), (1.0, 2.0, 0.5)])
def test_the_speedup_is_that_of_the_best_products(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float, expected):
    """The first and the fifth product of each format are disturbed by other work."""
    clock, calls = [0.0], dict.fromkeys((torch.float32, torch.bfloat16), 0)

    def linear(rows: torch.Tensor, weight: torch.Tensor) -> None:
        assert torch.get_num_threads() == 1
        assert weight.dtype == rows.dtype
        calls[rows.dtype] += 1
        disturbed = 100.0 if calls[rows.dtype] in (1, 5) else 0.0
        clock[0] += disturbed + (fp32 if rows.dtype == torch.float32 else bf16)

    monkeypatch.setattr(number_format.F, "linear", linear)
    monkeypatch.setattr(number_format.time, "perf_counter", lambda: clock[0])
    threads = torch.get_num_threads()
    bf16_speedup.cache_clear()
    try:
        assert bf16_speedup() == pytest.approx(expected)
        assert bf16_speedup() == pytest.approx(expected)
        assert calls[torch.bfloat16] == calls[torch.float32] > 5
    finally:
        bf16_speedup.cache_clear()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("adapter", [None, Adapter("lora", rank=2), Adapter("ia3")])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_ordinary_model_survives_rounding_and_is_left_as_it_was(family: str, adapter: Any):
    model = make(family) if adapter is None else add_adapter(make(family), adapter)
    sharing, _ = choose_sharing(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    assert survives_rounding(model, sharing) == ""
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name])
        assert p.requires_grad == trains[name]


def test_a_model_with_very_large_logits_does_not_survive_rounding():
    model = make("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1000.0)
    sharing, _ = choose_sharing(model)
    assert "log-prob differs by" in survives_rounding(model, sharing)
