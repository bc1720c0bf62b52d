"""Tensor parallelism by the plans of `transformers`: logits, gradients and norm are those of the unsharded model."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_models import make
from helpers_ranks import start_group
from helpers_runs import finished
from torch._C._distributed_c10d import _get_work_registry_size

from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, Kind, add_adapter
from afzal.model.load import blank_model, load_model
from afzal.model.logprobs import hidden_states
from afzal.model.memory import _storages, kept_bytes_per_token, measure
from afzal.model.recompute import Recompute, set_recompute
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree
from afzal.train import ranks
from afzal.train.dtensor import clip_gradients, gather_full, local
from afzal.train.shard import Sharded
from afzal.train.tensor import refuse_uncut

CPU = torch.device("cpu")
EVEN = {"vocab_size": 100}
Case = tuple[str, dict[str, Any], Kind | None]
"""A family, what is different of its configuration, and the adapter that it carries."""
Unread = tuple[str, Kind | None]
"""The folder of a model that is read in pieces, and the adapter that it gets."""


def loss_of(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 23).view(2, 10)
    logits = model(ids).logits
    return F.cross_entropy(logits[:, -ids.shape[1] : -1].flatten(0, 1), ids[:, 1:].flatten())


def adapted(model: Any, kind: Kind) -> Any:
    model = add_adapter(model, Adapter(kind, 4, 8.0, virtual_tokens=3))
    for p in model.parameters():  # lora_B starts at 0: the other factor would get no gradient
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn(p.shape))
    return model


def compare(case: Case) -> None:
    family, different, adapter = case
    model = make(family, **different)
    model = adapted(model, adapter) if adapter else model
    whole = copy.deepcopy(model)
    refuse_uncut(model, ranks.tensor())
    cut = Sharded(model, "fp32", CPU)
    assert any(p.placements[-1].is_shard() for p in cut._all.values() if p.device_mesh.ndim == 2), case
    one, other = loss_of(whole), loss_of(cut.model)
    assert other.item() == pytest.approx(one.item(), abs=2e-6), case
    one.backward()
    (other / ranks.data_world()).backward()  # every share has the same items here, and gradients are summed
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert expected.keys() == cut.masters.keys(), case
    for name, mine in gather_full({name: p.grad for name, p in cut.masters.items() if p.grad is not None}):
        gap = float((mine - expected[name]).abs().max())
        assert gap <= 1e-5 * max(1.0, float(expected[name].abs().max())), (case, name, gap)
    norm = float(torch.nn.utils.get_total_norm(expected.values()))
    assert float(clip_gradients(cut.masters.values(), 1e9)) == pytest.approx(norm, rel=1e-5), case
    for name, mine in gather_full(cut._all):
        assert torch.equal(mine, whole.get_parameter(name)), (case, name)
    hidden_states(cut.model, collate([tree("x", [5, 6], [[7, 8]])], "unshared", CPU))
    assert _get_work_registry_size() == 0, case  # exchanges of logits that nobody reads


def compare_unread(folder: str, adapter: Kind | None) -> None:
    """A rank reads only its own columns and rows, and the bits are those of a full model that was cut."""
    blank, unread = blank_model(folder)
    torch.manual_seed(0)
    made = Sharded(adapted(blank, adapter) if adapter else blank, "fp32", CPU, unread)
    torch.manual_seed(0)
    whole = Sharded(adapted(load_model(folder), adapter) if adapter else load_model(folder), "fp32", CPU)
    for name, p in whole._all.items():
        mine = local(made._all[name].detach())
        assert torch.equal(mine, local(p.detach())), name
        cut = p.device_mesh.ndim == 2 and p.placements[1].is_shard()
        most = -(-p.shape[0] // ranks.data_world()) * math.prod(p.shape[1:]) // (ranks.tensor() if cut else 1)
        assert mine.untyped_storage().nbytes() <= 4 * most, name
    copied = dict(made.frozen_copy().named_parameters())
    assert all(torch.equal(local(copied[name]), local(p.detach())) for name, p in made._all.items())


def compare_measured(recompute: Recompute) -> None:
    """What a forward pass keeps on this rank, counted in two ways, is about its share of what one process keeps."""
    model = make("llama", **EVEN, hidden_size=64, intermediate_size=176, num_key_value_heads=ranks.tensor())
    whole = kept_bytes_per_token(copy.deepcopy(model), "unshared")
    cut = Sharded(model, "fp32", CPU)
    made = cut.stand_in()
    assert made.get_parameter("lm_head.weight").to_local().untyped_storage().nbytes() == 4
    # the thread that exchanged a tensor may hold it for a moment longer, so that one measurement can count too much
    several = [measure(made, "unshared", modes=("none", recompute)) for _ in range(3)]
    mine = min(several, key=lambda measured: measured.kept["none"])
    share = mine.kept["none"] / whole
    assert 1 / ranks.tensor() < share < 1 / ranks.tensor() + 0.25, share  # norms and the sums over ranks are unsharded
    assert min(measured.kept[recompute] for measured in several) < 0.6 * mine.kept["none"]
    assert mine.called
    set_recompute(made, "none")
    batch = collate([tree("memory", [0] * 40, [[0] * 12] * 2)], "unshared", CPU)
    own = {storage.data_ptr() for p in made.parameters() for storage in _storages(p)}
    saved: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        saved.update({storage.data_ptr(): storage.nbytes() for storage in _storages(t)})
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        states = hidden_states(made, batch)
    saved.pop(states.untyped_storage().data_ptr(), None)
    counted = sum(size for at, size in saved.items() if at not in own)
    assert mine.kept["none"] * batch.ids.numel() == pytest.approx(counted, rel=0.1)


def _as_rank(argument: tuple[list[Case], list[Unread], int], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    cases, unread, members = argument
    with ranks.joined(CPU, members):
        for case in cases:
            compare(case)
        for case in unread:
            compare_unread(*case)
        compare_measured("selective" if members == 2 else "full")


def run(n: int, members: int, cases: list[Case], unread: list[Unread]) -> None:
    processes = start_group(_as_rank, n, (cases, unread, members))
    assert [finished(process) for process in processes] == [0] * n


def test_a_model_that_is_cut_by_its_plan_is_the_whole_model(tmp_path):
    make("llama", **EVEN).save_pretrained(tmp_path)
    run(2, 2, [("qwen3", EVEN, "lora"), ("qwen2", EVEN, "ia3"), ("qwen2", EVEN, "prefix")], [(str(tmp_path), None)])


@pytest.mark.slow
def test_so_is_an_adapter_that_normalises_whole_rows():
    run(2, 2, [("qwen2", EVEN, "dora"), ("phi3", EVEN, "dora")], [])


FAMILIES = ("llama", "qwen2", "qwen3", "mistral-sliding", "gemma", "gemma2", "gemma3", "gpt_neox", "phi")
FAMILIES += ("olmo", "olmo2", "phi3", "cohere", "cohere2", "granite", "starcoder2", "smollm3")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "members"), [(2, 2), (4, 2), (4, 4)])
def test_so_is_one_of_every_family_that_has_such_a_plan(tmp_path, n, members):
    sizes = EVEN | {"num_key_value_heads": members}
    tied = sizes | {"tie_word_embeddings": True}
    make("llama", **tied).save_pretrained(tmp_path / "tied")
    make("qwen3", **sizes).save_pretrained(tmp_path / "qwen3")
    cases: list[Case] = [("llama", tied, None), ("llama", tied, "lora"), ("qwen3", sizes, "lora")]
    cases += [(family, sizes, None) for family in FAMILIES]
    every: tuple[Kind, ...] = ("ia3", "dora", "prefix")
    # PEFT does not know what IA3 scales in phi3, nor how wide a prefix of gpt_neox is
    kinds = {"llama": every, "qwen2": every, "gemma2": every, "phi3": every[1:], "gpt_neox": every[:2]}
    cases += [(family, sizes, kind) for family, some in kinds.items() for kind in some]
    untied: list[Unread] = [(str(tmp_path / at), kind) for at in ("tied", "qwen3") for kind in (None, "lora")]
    run(n, members, cases, [*untied, (str(tmp_path / "qwen3"), "ia3")])


@pytest.mark.parametrize(
    ("family", "different", "said"),
    [
        ("gpt2", {}, "GPT2LMHeadModel has no plan"),
        ("qwen3_moe", {}, "mlp.experts as moe_tp_experts, which is not supported"),
        ("llama", {"num_key_value_heads": 1}, "num_key_value_heads 1 does not divide by it"),
        ("llama", {"intermediate_size": 47}, "gate_proj, 47 does not divide by it"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_with_the_reason(family, different, said):
    with pytest.raises(AfzalError) as error:
        refuse_uncut(make(family, **different), 2)
    assert said in (error.value.why or "")
    assert error.value.what == "tensor_parallel=2 is not possible with this model"
