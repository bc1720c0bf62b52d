"""Settings that several ranks refuse, each with its reason, and how they would differ from one process."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make as model_of
from helpers_runs import model_folder, pair_file

from afzal.cli import main
from afzal.config import make
from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, add_adapter
from afzal.recipes import parallel
from afzal.recipes.parallel import refuse, refuse_rounded, why_unsharded
from afzal.runs import torchrun
from afzal.train import ranks

DEVICES = Path(__file__).parents[2] / "docs" / "devices.md"
DATA = {"model": "model", "data": "pairs.jsonl"}


def as_one_of(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setattr("afzal.train.ranks.TELLING", timedelta(0))  # the others never come
    for name, value in {"RANK": 0, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


REFUSED: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    # method, settings, the message, a part of the reason, and a part of the documentation's row
    "meta": ("meta", {}, "method=meta cannot be trained over 2 ranks", "separate weights from", "`train meta`"),
    "quantize": ("dpo", {"quantize": "4bit", "lora_rank": 4}, "quantize cannot", "scales per block", "`quantize`"),
    "offload": ("dpo", {"offload": "optimizer"}, "offload=optimizer cannot", "full tensors", "`offload`"),
    "compile": ("dpo", {"compile": True}, "compile cannot", "on GPUs whole layers", "`compile`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_is_in_the_documentation(monkeypatch, name):
    method, asked, said, reason, documented = REFUSED[name]
    as_one_of(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AfzalError, match=said) as caught:
        refuse(make(method, **DATA, **asked), None)
    assert reason in caught.value.why
    assert caught.value.remedy
    assert documented in DEVICES.read_text().partition("## What is refused")[2].partition("\n## ")[0]


def test_a_model_in_memory_is_refused_with_the_reason(monkeypatch):
    as_one_of(monkeypatch, 2)
    with pytest.raises(AfzalError, match="a model in memory cannot be trained over 2 ranks") as caught:
        refuse(make("dpo", **DATA), object())
    assert "sharded in place" in caught.value.why
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize(
    "asked",
    [
        {"compile": True, "device": "cpu"},
        *({"adapter": kind, "tensor_parallel": 2} for kind in ("prompt", "prefix", "ia3", "dora")),
        {"method": "grpo", "reward": "r.py:r", "tensor_parallel": 2},
        {"adapter": "dora"},
        {"adapter": "prefix"},
        {"adapter_from": "run", "prior": 0.1},
    ],
)
def test_what_several_ranks_do_as_one_is_let_through(monkeypatch, asked):
    as_one_of(monkeypatch, 2)
    asked = dict(asked)
    refuse(make(asked.pop("method", "dpo"), **DATA, **asked), None)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_number_of_ranks_that_matrices_are_not_cut_over(monkeypatch, ranks):
    as_one_of(monkeypatch, ranks)
    with pytest.raises(AfzalError, match=f"tensor_parallel=2 does not divide the number of ranks, {ranks}"):
        refuse(make("dpo", **DATA, tensor_parallel=2), None)


@pytest.mark.parametrize("kind", ["ia3", "dora"])
def test_factors_and_norms_that_would_be_rounded_are_refused(monkeypatch, kind):
    model = add_adapter(model_of("llama"), Adapter(kind))
    refuse_rounded(model, "bf16")
    as_one_of(monkeypatch, 2)
    refuse_rounded(model, "fp32")
    with pytest.raises(AfzalError, match="IA3 or DoRA cannot be trained over 2 ranks in bf16") as caught:
        refuse_rounded(model, "bf16")
    assert "stay in float32" in caught.value.why
    refuse_rounded(add_adapter(model_of("llama"), Adapter("lora")), "bf16")


def test_verbs_that_write_alone_say_so(monkeypatch):
    torchrun.require_one_process("afzal iterate")
    as_one_of(monkeypatch, 2)
    with pytest.raises(AfzalError, match="afzal iterate cannot run on 2 ranks") as caught:
        torchrun.require_one_process("afzal iterate")
    assert "split across ranks" in caught.value.why
    assert "torchrun -m afzal train" in caught.value.remedy


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "dpo", "--offload", "optimizer"], "offload=optimizer cannot"),
        (["train", "dpo", "--device", "cuda:1"], "device=cuda:1 cannot be the device of 2 ranks"),
        (["check", "pairs.jsonl"], "afzal check cannot run on 2 ranks"),
    ],
)
def test_the_command_line_says_it(tmp_path, monkeypatch, capsys, arguments, said):
    pair_file(tmp_path / "pairs.jsonl", 4)
    model_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    as_one_of(monkeypatch, 2)
    more = ["--model", "model", "--data", "pairs.jsonl"] if arguments[0] == "train" else []
    assert main([*arguments, *more]) == 2
    printed = capsys.readouterr().err
    assert said in printed


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"peft_type": "LORA"}, ""),
        ({"peft_type": "LORA", "use_dora": True, "init_lora_weights": "gaussian"}, ""),
        ({"peft_type": "IA3"}, ""),
        ({"peft_type": "PREFIX_TUNING"}, ""),
        ({"peft_type": "PROMPT_TUNING"}, ""),
        ({"peft_type": "P_TUNING"}, ""),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "brings along weights of the base model"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "starts from the base model's weights"),
        ({"peft_type": "OFT"}, "is of a kind that may be made of the base model's weights (OFT)"),
    ],
)
def test_what_is_loaded_whole_by_every_rank_says_why_and_is_in_the_documentation(monkeypatch, tmp_path, about, said):
    monkeypatch.setattr(parallel, "model_folder", lambda path: path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    why = why_unsharded(make("dpo", **DATA, adapter_from=str(tmp_path)))
    assert why.startswith(f"the adapter {tmp_path} {said}") if said else not why
    documented = DEVICES.read_text().partition("## Loading")[2].partition("\n## ")[0].replace("\n", " ")
    assert all(words in documented for words in ("`adapter_from`", "`modules_to_save`", "`pissa`", "of a kind"))


@pytest.mark.parametrize("asked", [{}, {"adapter": "prompt"}, {"adapter": "dora", "tensor_parallel": 2}])
def test_no_fresh_adapter_is_a_reason_to_load_the_model_whole(asked):
    assert not why_unsharded(make("dpo", **DATA, **asked))


@pytest.mark.parametrize(("world", "said"), [(1, ""), (2, "note: every rank loads all of other: it is packed\n")])
def test_a_frozen_model_that_every_rank_loads_whole_is_told_of(world, said, monkeypatch, capsys):
    monkeypatch.setattr(ranks, "world", lambda: world)
    monkeypatch.setattr(ranks, "data_world", lambda: world)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    monkeypatch.setattr(parallel, "open_blank", lambda blank: parallel.StartingModel(None, None, "it is packed"))
    for name in ("load_model", "load_reward_model"):
        monkeypatch.setattr(parallel, name, lambda path, device: torch.nn.Linear(2, 2))
    cpu = torch.device("cpu")
    judges = parallel.Scorers().loaders
    for load in (
        lambda: parallel.frozen_model("other", "fp32", cpu),
        lambda: judges.reward("other", cpu),
        lambda: judges.language("other", cpu),
    ):
        load()
        assert capsys.readouterr().err == said
