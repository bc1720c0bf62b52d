"""A policy that only draws answers has the weights, formats and logits of one process; each rank keeps its shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers_models import make
from helpers_ranks import start_group
from helpers_runs import finished

from afzal.model.adapters import Adapter, Kind, add_adapter
from afzal.model.load import load_model
from afzal.recipes import parallel
from afzal.train import ranks
from afzal.train.dtensor import local
from afzal.train.shard import gathered, is_in_pieces

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("lora", "dora", "ia3", "prompt", "prefix", "p_tuning")


def _compare(folders: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    ids = torch.arange(3, 11)[None]
    with ranks.joined(CPU):
        for folder in folders:
            for dtype, number in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                made, whole = parallel.frozen_policy(folder, dtype, CPU), load_model(folder, dtype=number)
                assert is_in_pieces(made)
                expected = dict(whole.named_parameters())
                for name, p in made.named_parameters():
                    assert p.dtype == expected[name].dtype, (folder, dtype, name)
                    assert not p.requires_grad, name
                    assert local(p).numel() <= p.numel() // 2 + p[0].numel(), name
                with torch.no_grad(), gathered(made):
                    passes = 1 + ranks.rank()  # unequal numbers of passes wait for nobody
                    logits = [made(ids).logits for _ in range(passes)]
                    assert torch.equal(logits[-1], whole(ids).logits), (folder, dtype)


@pytest.mark.parametrize("kinds", [KINDS[:1], pytest.param(KINDS[1:], marks=pytest.mark.slow)])
def test_a_policy_that_draws_answers_is_that_of_one_process(tmp_path: Path, kinds: tuple[Kind, ...]) -> None:
    make("llama").save_pretrained(tmp_path / "llama")
    for kind in kinds:
        adapted = add_adapter(load_model(str(tmp_path / "llama")), Adapter(kind, 4, 8.0, virtual_tokens=4))
        torch.manual_seed(1)
        for p in adapted.parameters():
            if p.requires_grad:
                p.data.add_(0.02 * torch.randn(p.shape))
        adapted.save_pretrained(tmp_path / kind)
    started = start_group(_compare, 2, [str(tmp_path / name) for name in ("llama", *kinds)])
    assert [finished(process) for process in started] == [0, 0]
