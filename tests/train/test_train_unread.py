"""Ranks that read their own shards have the bits of a full model that was cut, and none holds the full model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from helpers_models import make
from helpers_ranks import start_group
from helpers_runs import finished

from afzal.model.adapters import Adapter, add_adapter
from afzal.model.load import blank_model, load_model
from afzal.model.reward import blank_reward_model, load_reward_model
from afzal.model.value import freeze_unused_head, own_critic
from afzal.train import ranks
from afzal.train.dtensor import local
from afzal.train.precision import Dtype
from afzal.train.shard import Sharded, read_frozen, shard, start_adapter_in_pieces

CPU = torch.device("cpu")


def same(one: Any, other: Any) -> None:
    """Names, shards and trainable parameters are equal, bit for bit."""
    own, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert own.keys() == theirs.keys()
    for name, p in own.items():
        assert p.dtype == theirs[name].dtype, name
        assert p.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(local(p.detach()), local(theirs[name].detach())), name


Kind = Literal["", "lora", "dora"]


def adapted(model: Any, adapter: Kind) -> Any:
    torch.manual_seed(0)
    return add_adapter(model, Adapter(adapter, 4, 8.0)) if adapter else model


def cut(folder: str, dtype: Dtype, adapter: Kind) -> tuple[Sharded, Sharded]:
    blank, unread = blank_model(folder)
    made = Sharded(adapted(blank, adapter), dtype, CPU, unread)
    start_adapter_in_pieces(made.model)
    return made, Sharded(adapted(load_model(folder), adapter), dtype, CPU)


def _compare(argument: tuple[str, Dtype, Kind]) -> None:
    folder, dtype, adapter = argument
    made, whole = cut(folder, dtype, adapter)
    same(made.model, whole.model)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        assert torch.equal(made.model(ids).logits, whole.model(ids).logits)
    made.publish()  # the forward pass leaves embeddings gathered
    for name, p in made.model.named_parameters():
        held = local(p.detach())
        assert held.untyped_storage().nbytes() <= p.element_size() * (p.numel() // 2 + p[0].numel()), name
    copied = made.frozen_copy()
    assert not any(p.requires_grad for p in copied.parameters())
    blank, unread = blank_model(folder)
    base = shard(load_model(folder, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32), CPU)
    same(read_frozen(blank, dtype, CPU, unread), base.requires_grad_(False))
    if not adapter:
        same(copied, base)
    valued = own_critic(adapted(load_model(folder), adapter)).trunk
    assert valued.get_output_embeddings().weight.requires_grad == ("gpt2" in folder)  # with a tied head
    same(made.trainable_copy(freeze_unused_head).model, Sharded(valued, dtype, CPU).model)
    one, other = made.unsharded_model(Path(folder)), whole.unsharded_model(Path(folder))
    if ranks.leads():
        for name, p in one.named_parameters():
            trains = p.requires_grad or "embed" in name or "lm_head" in name
            assert p.is_meta == (bool(adapter) and not trains), name
            assert p.is_meta or torch.equal(p, other.get_parameter(name)), name


def _compare_scorers(argument: tuple[str, Dtype, Kind]) -> None:
    folder, dtype, adapter = argument
    blank, unread = blank_reward_model(folder, heads=2, seed=5)
    whole = load_reward_model(folder, heads=2, seed=5)
    made = Sharded(adapted(blank, adapter), dtype, CPU, unread)
    start_adapter_in_pieces(made.model)
    same(made.model, Sharded(adapted(whole, adapter), dtype, CPU).model)
    saved = made.unsharded_model(Path(folder))  # whose adapter is merged into the base before it is written
    assert not ranks.leads() or not any(p.is_meta for p in saved.parameters())


def _as_rank(cases: list[tuple[str, Dtype, Kind]], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with ranks.joined(CPU):
        for case in cases:
            print(case, flush=True)  # which of them failed
            _compare(case)
            _compare_scorers(case)


CASES: list[tuple[str, Dtype, Kind]] = [("llama", "fp32", ""), ("llama", "bf16", "lora"), ("llama", "fp32", "dora")]
CASES += [("gpt2", "bf16", ""), ("gpt_neox", "fp32", "lora"), ("mixtral", "bf16", "")]


def test_pieces_that_are_read_are_those_of_the_whole(tmp_path: Path):
    """Families, dtypes, with and without an adapter, by one pair of ranks."""
    for family in ("llama", "gpt2", "gpt_neox", "mixtral"):
        overrides = {"hidden_size": 96} if family == "llama" else {}  # 96 rows: matrices larger than one read
        make(family, **overrides).bfloat16().save_pretrained(tmp_path / family, max_shard_size="50KB")
    started = start_group(_as_rank, 2, [(str(tmp_path / family), dtype, adapter) for family, dtype, adapter in CASES])
    assert [finished(process) for process in started] == [0, 0]
