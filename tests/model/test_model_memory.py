"""How much memory an update keeps, measured, and the decision to recompute."""

from __future__ import annotations

import torch
from helpers_models import make, random_trees

from afzal.model import memory
from afzal.model.load import add_lora
from afzal.model.logprobs import score
from afzal.model.memory import free_bytes, must_recompute, saved_bytes_per_token
from afzal.model.probe import choose_sharing
from afzal.tokens.batch import collate


def kept_bytes(model, batch):
    """What a forward pass really leaves alive, by counting its saved tensors once each."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def note(saved):
        seen[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = score(model, batch).logps.sum()
    assert loss.requires_grad
    return sum(n for at, n in seen.items() if at not in weights)


def test_the_measure_predicts_what_a_larger_batch_keeps():
    model = make("llama", hidden_size=64, intermediate_size=176, num_hidden_layers=4)
    choose_sharing(model)
    batch = collate(random_trees(24), "shared")
    predicted = saved_bytes_per_token(model, "shared") * batch.ids.numel()
    assert 0.7 < kept_bytes(model, batch) / predicted < 1.4


def test_bf16_keeps_less_than_fp32_and_an_adapter_has_a_figure_of_its_own():
    model = make("llama")
    choose_sharing(model)
    full = saved_bytes_per_token(model, "shared")
    half = saved_bytes_per_token(make("llama").to(torch.bfloat16), "unshared")
    assert 0 < half < full
    assert saved_bytes_per_token(add_lora(model, rank=2, alpha=4), "shared") > 0


def test_recomputing_is_chosen_when_memory_is_short_and_only_then(monkeypatch):
    model = make("llama")
    choose_sharing(model)
    ask = {"tokens": 1000, "scored": 400, "trained": 10_000}
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**12)
    assert must_recompute(model, "shared", **ask) == ""
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**5)
    assert "GB would be needed" in must_recompute(model, "shared", **ask)
    monkeypatch.setattr(memory, "free_bytes", lambda _: None)
    assert must_recompute(model, "shared", **ask) == ""


def test_free_memory_is_the_smaller_of_the_machine_and_its_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 2_048_000
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 2_048_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) is None
