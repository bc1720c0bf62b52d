"""The plan for 64 ranks against what FSDP2 really holds and moves on one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from plan_trace import Traced, trace

from afzal.model.load import add_lora
from afzal.plan import DEVICES, METHODS, Job, Layout, Moment, Traffic, lengths, peak, shape_of, traffic

RANKS = 64
TOKENS = 8


@dataclass(frozen=True)
class Case:
    width: int
    ff: int
    layers: int
    vocabulary: int
    tied: bool = False
    rank: int = 0


CASES = {
    "blocks larger than the embedding": Case(512, 1536, 6, 2000),
    "embedding larger than the blocks": Case(256, 1024, 3, 16000),
    "tied": Case(512, 1536, 4, 4000, tied=True),
    "adapters": Case(512, 1536, 6, 2000, rank=64),
}


def config_of(case: Case) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=case.width,
        intermediate_size=case.ff,
        num_hidden_layers=case.layers,
        vocab_size=case.vocabulary,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=case.tied,
    )


def traced(case: Case) -> Traced:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(case))
    if case.rank:
        model = add_lora(model.to(torch.bfloat16), rank=case.rank, alpha=8)
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data
    return trace(model, RANKS, TOKENS)


def planned(case: Case) -> tuple[Moment, Traffic]:
    counts = np.array([[TOKENS // 2, TOKENS - TOKENS // 2]] * RANKS)
    job = Job(shape_of(config_of(case).to_dict()), METHODS["sft"], lengths(counts), RANKS, reference="none")
    layout = Layout(nodes=RANKS // 8, gpus=8, shards=RANKS, tokens=TOKENS)
    device = replace(DEVICES["h100"], reserve=0.0)
    job = replace(job, rank=case.rank)
    return peak(job, layout, device), traffic(job, layout, device)


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest) -> tuple[Traced, Moment, Traffic]:
    case = CASES[request.param]
    figures = traced(case), *planned(case)
    print(request.param, *figures)
    return figures


def test_weights_gradients_and_optimiser_are_cut_as_planned(both: tuple[Traced, Moment, Traffic]):
    actual, moment, _ = both
    assert actual.parameters == pytest.approx(moment.terms["weights"], rel=0.01)
    assert actual.optimiser == pytest.approx(moment.terms["optimiser"], rel=0.01)
    assert actual.gradients == pytest.approx(actual.optimiser / 2)


def test_the_fullest_moment_is_within_a_tenth(both: tuple[Traced, Moment, Traffic]):
    actual, moment, _ = both
    assert moment.total == pytest.approx(actual.peak, rel=0.1)


def test_traffic_is_what_the_collectives_move(both: tuple[Traced, Moment, Traffic]):
    actual, _, moved = both
    assert moved.gather == pytest.approx(actual.gathered, rel=0.1)
    assert moved.scatter == pytest.approx(actual.scattered, rel=0.1)
