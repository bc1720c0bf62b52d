"""Measured memory of an update in each mode of recomputing activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers_models import make, random_trees

from afzal.model import memory
from afzal.model.load import add_lora, switch_off_dropout
from afzal.model.logprobs import score
from afzal.model.memory import PerToken, free_bytes, is_out_of_memory, kept_bytes_per_token, measure
from afzal.model.probe import choose_sharing
from afzal.model.recompute import MODES, recompute_of, set_recompute
from afzal.runs.environment import memory_limits
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree


def kept_bytes(model, batch):
    """Bytes that a forward pass leaves alive, counting each saved tensor once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def note(saved):
        seen[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = score(model, batch).logps.sum()
    assert loss.requires_grad
    return sum(n for at, n in seen.items() if at not in weights)


def small_llama():
    model = make("llama", hidden_size=64, intermediate_size=176, num_hidden_layers=4)
    choose_sharing(model)
    return model


def test_the_measure_predicts_what_a_larger_batch_keeps():
    model = small_llama()
    batch = collate(random_trees(24), "shared")
    predicted = kept_bytes_per_token(model, "shared") * batch.ids.numel()
    assert 0.7 < kept_bytes(model, batch) / predicted < 1.4


def test_bf16_keeps_less_than_fp32_and_an_adapter_has_a_figure_of_its_own():
    model = make("llama")
    choose_sharing(model)
    full = kept_bytes_per_token(model, "shared")
    half = kept_bytes_per_token(make("llama").to(torch.bfloat16), "unshared")
    assert 0 < half < full
    assert kept_bytes_per_token(add_lora(model, rank=2, alpha=4), "shared") > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mode_keeps_less_than_the_one_before(dtype):
    model = small_llama().to(dtype)
    per = measure(model, "shared")
    assert recompute_of(model) == "full", "the last that was measured"
    none, selective, full = (per.kept[mode] for mode in MODES)
    assert none * 0.25 < selective < none * 0.7
    # a block's input, the norm at the end in float32, and once per row where products in bf16 gather their heads from
    inputs, places = 4 * 64 * dtype.itemsize, 4 * 4 * 8
    assert inputs < full < inputs + 4 * 64 * 4 + places
    assert per.block == none / 4


def test_what_stays_alive_is_what_autograd_saves():
    """Two independent counts of the mode that keeps everything: storages alive, and tensors handed to autograd."""
    model = small_llama()
    batch = collate(random_trees(1, longest=40), "shared")
    per_token = kept_bytes_per_token(model, "shared", random_trees(1, longest=40)[0])
    assert per_token * batch.ids.numel() == pytest.approx(kept_bytes(model, batch), rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_with_adapters_are_kept_once_whatever_the_tokens(dtype):
    """PEFT adds an expert's adapter to its weights in every pass; sums are kept, those of one block recomputed."""
    model = add_lora(make("mixtral"), rank=2, alpha=4).to(dtype)
    sharing, _ = choose_sharing(model)
    few, many = (
        measure(model, sharing, tree("few or many", [0] * n, [[0] * n] * 2), ("none", "full")) for n in (8, 80)
    )
    merged = 4 * 3 * 48 * 32 * dtype.itemsize  # 4 experts, three matrices each
    assert few.fixed == many.fixed
    assert merged <= few.fixed_block == few.fixed["none"] / 2 < 1.3 * merged
    assert few.fixed["full"] < 0.1 * merged
    assert few.kept["none"] == pytest.approx(many.kept["none"], rel=0.35)
    assert measure(small_llama(), "shared", modes=("none",)).fixed["none"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "qwen2_moe", "gpt_oss"])
def test_every_mode_gives_the_same_bits(family):
    model = make(family)
    switch_off_dropout(model)
    assert choose_sharing(model)[0] == "shared"
    batch = collate(random_trees(6), "shared")
    gradients = {}
    for mode in (*MODES, "none"):
        set_recompute(model, mode)
        assert recompute_of(model) == mode
        model.zero_grad()
        score(model, batch).logps.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert torch.equal(gradients.setdefault("first", gradient), gradient), mode


def test_the_terms_of_a_forward_pass_by_hand():
    per = PerToken(block=10.0, kept={"none": 40.0, "full": 4.0}, logit=400.0, element=4)
    assert per.of("none", 100, 0) == {"activations": 4000.0, "logits": 0.0}
    assert per.of("full", 100, 0)["activations"] == 1400.0, "one block is made again at a time"
    assert per.of("none", 100, 5)["logits"] == 2000, "5 x 400 bytes kept, which become their own gradient"
    fixed = replace(per, fixed={"none": 300.0, "full": 5.0}, fixed_block=75.0)
    assert fixed.of("none", 100, 0)["activations"] == 4300
    assert fixed.of("full", 100, 0)["activations"] == 1480
    many = per.of("none", 100, 10**7)["logits"]
    assert many == memory.TILE_ELEMENTS * 4, "beyond a GiB logits are made again, tile by tile"


def test_words_and_kinds_of_running_out_of_memory():
    said = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("out of memory"))


def test_torch_itself_says_it_in_these_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_free_memory_follows_the_first_kind_of_control_groups_too(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemAvailable:   2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    group = tmp_path / "memory"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.usage_in_bytes").write_text("400000\n")
    (group / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 250000\n")
    assert free_bytes(torch.device("cpu")) == 850_000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # the value that means no limit
    assert free_bytes(torch.device("cpu")) == 2_048_000


def test_free_memory_is_the_smaller_of_the_machine_and_its_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 2_048_000
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.stat").write_text("anon 100000\ninactive_file 250000\nactive_file 50000\n")
    assert free_bytes(torch.device("cpu")) == 850_000  # evicting files that were read once costs nothing
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 2_048_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) is None


def test_free_memory_is_the_least_that_any_group_above_the_process_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "own_memory_limits", lambda root: memory_limits(root, "0::/job/step\n"))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    step = tmp_path / "job" / "step"
    step.mkdir(parents=True)
    for group, limit, used in ((step, "max", 100), (step.parent, "1000", 300), (tmp_path, "5000", 4800)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
    assert free_bytes(torch.device("cpu")) == 200
    (tmp_path / "memory.max").write_text("9000\n")
    assert free_bytes(torch.device("cpu")) == 700
