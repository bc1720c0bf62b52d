"""Adapter settings: which belong to which kind, their defaults, and refusals by name."""

from __future__ import annotations

from typing import Any

import pytest

from afzal import config
from afzal.errors import AfzalError

BASE = {"model": "M", "data": "D"}


def made(method: str = "dpo", **given: Any) -> Any:
    return config.make(method, **BASE, **given)


@pytest.mark.parametrize("kind", config.LOW_RANK)
def test_low_rank_adapters_have_a_rank_and_ten_times_the_learning_rate(kind: str):
    assert (made(adapter=kind).lora_rank, made(adapter=kind).lr) == (8, 1e-5)
    assert made(adapter=kind, lora_rank=3, lora_alpha=5, lora_targets=["q_proj"]).lora_rank == 3


@pytest.mark.parametrize("kind", config.VIRTUAL)
def test_virtual_tokens_have_a_number_and_a_large_learning_rate(kind: str):
    assert (made(adapter=kind).virtual_tokens, made(adapter=kind).lr) == (20, 1e-3)
    assert made("sft", adapter=kind, virtual_tokens=4, lr=0.5).virtual_tokens == 4


def test_a_rank_alone_means_lora_and_nothing_means_all_weights():
    assert made(lora_rank=4).adapter_kind == "lora"
    assert made().adapter_kind is None
    assert made(adapter="ia3").lr == 1e-4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapter": "prefix", "lora_rank": 4}, "lora_rank has no effect: the adapter is prefix"),
        ({"adapter": "ia3", "lora_alpha": 4}, "lora_alpha has no effect: the adapter is ia3"),
        ({"adapter": "prompt", "lora_targets": ["q"]}, "lora_targets has no effect: the adapter is prompt"),
        ({"adapter": "lora", "virtual_tokens": 4}, "virtual_tokens has no effect: adapter is none of prefix"),
        ({"virtual_tokens": 4}, "virtual_tokens has no effect"),
        ({"adapter": "lorra"}, "did you mean lora"),
        ({"adapter": "prompt", "reference_sync_steps": 2}, "the model with its new adapter off"),
        ({"quantize": "8bit"}, "quantize cannot be '8bit'"),
    ],
)
def test_what_an_adapter_would_ignore_is_refused_by_name(given: dict[str, Any], said: str):
    with pytest.raises(AfzalError, match=said):
        made(**given)


@pytest.mark.parametrize("kind", config.VIRTUAL)
def test_reward_models_take_no_virtual_tokens(kind: str):
    with pytest.raises(AfzalError, match=f"adapter {kind} is for models that write"):
        made("reward", adapter=kind)
    with pytest.raises(AfzalError, match="'quantize' has no effect on reward"):
        made("reward", adapter="lora", quantize="4bit")


def test_the_reference_may_be_any_fresh_adapter_switched_off():
    assert made(adapter="prompt", reference="adapter_off").reference == "adapter_off"


def test_export_refuses_what_it_would_ignore():
    assert config.ExportConfig(model="M", out="O").dtype == "auto"
    with pytest.raises(ValueError, match="rows has no effect"):
        config.ExportConfig(model="M", out="O", rows=3)


def test_advice_knows_that_virtual_tokens_take_large_steps():
    assert config.advice(made(adapter="prompt", lr=1e-2)) == []
    assert "adapter prompt" in config.advice(made(adapter="prompt", lr=1e-6))[0]
