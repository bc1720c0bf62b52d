"""The plan for 64 ranks against what FSDP2 really holds and moves on one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from plan_trace import Traced, trace

from afzal.plan import DEVICES, METHODS, Job, Layout, Moment, Traffic, lengths, peak, shape_of, traffic

RANKS = 64
TOKENS = 8
SIZES = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def config(width: int, ff: int, layers: int, vocabulary: int):
    from transformers import LlamaConfig

    sizes = {"hidden_size": width, "intermediate_size": ff, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return LlamaConfig(**SIZES, **sizes)


def planned(about) -> tuple[Moment, Traffic]:
    counts = np.array([[TOKENS // 2, TOKENS - TOKENS // 2]] * RANKS)
    job = Job(shape_of(about.to_dict()), METHODS["sft"], lengths(counts), batch_size=RANKS, reference="none")
    layout = Layout(nodes=RANKS // 8, gpus=8, shards=RANKS, tokens=TOKENS)
    device = replace(DEVICES["h100"], reserve=0.0)
    return peak(job, layout, device), traffic(job, layout, device)


@pytest.fixture(scope="module", params=[(512, 1536, 6, 2000), (256, 1024, 3, 16000)], ids=["deep", "wide head"])
def both(request) -> tuple[Traced, Moment, Traffic]:
    """A model whose blocks are larger than its embedding, and one whose embedding is larger than its blocks."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    about = config(*request.param)
    return trace(AutoModelForCausalLM.from_config(about), RANKS, TOKENS), *planned(about)


def test_weights_gradients_and_optimiser_are_cut_as_planned(both: tuple[Traced, Moment, Traffic]):
    traced, moment, _ = both
    assert traced.parameters == pytest.approx(moment.terms["weights"], rel=0.01)
    assert traced.optimiser == pytest.approx(moment.terms["optimiser"], rel=0.01)
    assert traced.gradients == pytest.approx(traced.parameters)


def test_the_fullest_moment_is_within_a_tenth(both: tuple[Traced, Moment, Traffic]):
    traced, moment, _ = both
    assert moment.total == pytest.approx(traced.peak, rel=0.1)


def test_traffic_is_what_the_collectives_move(both: tuple[Traced, Moment, Traffic]):
    traced, _, moved = both
    assert moved.gather == pytest.approx(traced.gathered, rel=0.1)
    assert moved.scatter == pytest.approx(traced.scattered, rel=0.1)
