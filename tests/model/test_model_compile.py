"""Compiled blocks give the same results as plain ones. The compiler's back end is eager: only tracing is tested."""

from __future__ import annotations

import pytest
import torch
from helpers_models import make, random_trees
from transformers import AttentionInterface

from afzal.model import attention, load
from afzal.model.load import add_lora, compiled_parts
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.tokens.batch import collate


@pytest.fixture
def restored():
    yield
    AttentionInterface.register(attention.TREE_ATTENTION, attention.tree_attention)
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_blocks_are_found_by_the_name_that_transformers_gives_them(family):
    model = make(family)
    assert len(compiled_parts(model, whole_blocks=True)) == model.config.num_hidden_layers
    wrapped = add_lora(model, rank=2, alpha=4.0)
    assert len(compiled_parts(wrapped, whole_blocks=True)) == model.config.num_hidden_layers


def test_without_blocks_of_a_known_name_parts_are_compiled():
    model = make("llama")
    model._no_split_modules = None
    kinds = {type(m).__name__ for m in compiled_parts(model, whole_blocks=True)}
    assert kinds == {"LlamaMLP", "LlamaRMSNorm"}


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_numbers_and_are_compiled_once_for_all(family, restored):
    model = make(family, num_hidden_layers=6)
    assert choose_sharing(model)[0] == "shared"
    batches = [collate(random_trees(n, seed=n), "shared") for n in (3, 4, 5, 6)]

    def run():
        values = []
        for batch in batches:
            model.zero_grad()
            logps = score(model, batch).token_logps
            (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
            values += [logps.detach(), *(p.grad.clone() for p in model.parameters())]
        return values

    plain = run()
    torch._dynamo.reset()
    attention.keep_uncompiled()
    for block in compiled_parts(model, whole_blocks=True):
        block.compile(dynamic=True, backend="aot_eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for values, expected in zip(run(), plain, strict=True):
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 0 < made <= 24, "every layer or every batch is compiled anew"


def test_only_a_gpu_gets_whole_blocks(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: seen.append(type(self).__name__))
    load.compile_layers(make("llama"))
    assert set(seen) == {"LlamaMLP", "LlamaRMSNorm"}
