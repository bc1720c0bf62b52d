"""Adapters are added to their experts once while answers are sampled, and the answers are the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers_models import make
from peft.tuners.lora.layer import ParamWrapper

from afzal.generate import Sampling, sample
from afzal.model import experts
from afzal.model.adapters import Adapter, add_adapter


def adapted(family: str) -> Any:
    model = add_adapter(make(family), Adapter("lora", 4, 8.0))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


def answers(model: Any) -> list[tuple[list[int], list[float]]]:
    samples = sample(model, [[5, 6, 7], [9, 8]], eos=(1,), n=3, sampling=Sampling(8, 1.0), seed=3)
    return [(s.ids.tolist(), s.logps.tolist()) for s in samples]


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often adapters have been added to their experts."""
    counts: Counter[str] = Counter()
    original = ParamWrapper._activate_lora

    def counted(self: Any, names: list[str]) -> Any:
        counts[self.parameter_name] += 1
        return original(self, names)

    monkeypatch.setattr(ParamWrapper, "_activate_lora", counted)
    return counts


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_answers_are_the_same_bits_and_experts_are_added_up_once(
    family: str, sums: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    model = adapted(family)
    weights, before = dict(model.named_parameters()), {n: p.clone() for n, p in model.named_parameters()}
    answers(model)  # the first call checks whether prompts can be shared, in extra forward passes
    sums.clear()
    once = answers(model)
    assert set(sums) == {"gate_up_proj", "down_proj", "weight"}
    assert set(sums.values()) == {2}, "one for each layer"
    assert dict(model.named_parameters()) == weights
    assert all(torch.equal(p, before[n]) for n, p in weights.items())
    monkeypatch.setattr(experts, "_fit", lambda weights: False)
    sums.clear()
    assert answers(model) == once
    assert sums["gate_up_proj"] > 8
    with model.disable_adapter():
        assert answers(model) != once, "the control: the adapters say something"


def test_adapters_that_are_off_stay_off(sums: Counter[str]):
    model = adapted("mixtral")
    with model.disable_adapter():
        off = answers(model)
        assert not any(w.merged for w in model.modules() if isinstance(w, ParamWrapper))
        assert all(w.disable_adapters for w in model.modules() if isinstance(w, ParamWrapper))
    assert off == answers(make("mixtral"))
    assert not sums


@pytest.mark.parametrize(("free", "does"), [(None, True), (10**9, True), (1000, False)])
def test_sums_that_do_not_fit_are_not_computed(free: int | None, does: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experts, "free_bytes", lambda device: free)
    model = adapted("mixtral")
    weight = model.base_model.model.model.layers[0].mlp.experts.get_base_layer().down_proj
    with experts.experts_added_once(model):
        inside = model.base_model.model.model.layers[0].mlp.experts.get_base_layer().down_proj
        assert (inside is not weight) == does
    assert model.base_model.model.model.layers[0].mlp.experts.get_base_layer().down_proj is weight


def test_a_block_that_fails_restores_the_weights():
    model = adapted("mixtral")
    weights = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), experts.experts_added_once(model):
        1 / 0  # noqa: B018
    assert dict(model.named_parameters()) == weights
