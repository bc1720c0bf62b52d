"""Files of a finished run: weights in the number format of the input, and nothing that only a resumption needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make
from helpers_runs import fingerprint, model_folder, one_thread, settings
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import afzal
from afzal import config, recipes, runs
from afzal.recipes import outputs

QUICK = {"max_steps": 3, "save_every_steps": None, "sample_prompts": 0}
BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16


def folder_in(dtype: torch.dtype, path: Path) -> Path:
    model_folder(path)
    AutoModelForCausalLM.from_pretrained(path).to(dtype).save_pretrained(path)
    return path


def formats(folder: Path) -> dict[str, torch.dtype]:
    (path,) = folder.glob("*model.safetensors")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def trained(tmp_path: Path, method: str = "dpo", name: str = "run", **overrides: Any) -> Path:
    given = settings(tmp_path, tmp_path / name, **(QUICK | overrides))
    if method == "reward":
        given = {k: v for k, v in given.items() if not k.startswith("sample_")}
    with one_thread():
        return recipes.train(config.make(method, **given))


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_weights_are_saved_in_the_format_of_the_input(dtype: torch.dtype, tmp_path: Path):
    folder_in(dtype, tmp_path / "model")
    out = trained(tmp_path)
    assert set(formats(out).values()) == {dtype}
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.model.rotary_emb.inv_freq.dtype == FP32


def test_a_finished_run_is_as_large_as_its_model(tmp_path: Path):
    """With float32 weights, their moments and a checkpoint it would be eight times a bf16 model."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 256}
    model_folder(tmp_path / "model", **wide)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").to(BF16).save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model/model.safetensors").stat().st_size
    assert weights > 2_000_000
    assert size(trained(tmp_path)) < 1.2 * size(tmp_path / "model")


@pytest.mark.parametrize(("asked", "stored", "saved"), [("fp32", BF16, FP32), ("bf16", FP32, BF16)])
def test_a_format_can_be_asked_for(asked: str, stored: torch.dtype, saved: torch.dtype, tmp_path: Path):
    folder_in(stored, tmp_path / "model")
    out = trained(tmp_path, save_dtype=asked)
    assert set(formats(out).values()) == {saved}
    assert runs.open_run(out).facts()["model"]["saved_as"] == asked


def test_saved_weights_are_the_trained_ones_rounded_once(tmp_path: Path):
    folder_in(BF16, tmp_path / "model")
    exact, rounded = (
        AutoModelForCausalLM.from_pretrained(trained(tmp_path, name=name, save_dtype=name), dtype="auto").state_dict()
        for name in ("fp32", "bf16")
    )
    assert all(torch.equal(exact[name].bfloat16(), rounded[name]) for name in exact)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").state_dict()
    assert any(not torch.equal(start[name], rounded[name]) for name in start)


def test_adapters_stay_in_float32_and_can_be_asked_for_in_bf16(tmp_path: Path):
    folder_in(BF16, tmp_path / "model")
    assert set(formats(trained(tmp_path, lora_rank=2)).values()) == {FP32}
    assert set(formats(trained(tmp_path, name="low", lora_rank=2, save_dtype="bf16")).values()) == {BF16}


@pytest.mark.parametrize("adapter", [{}, {"lora_rank": 2}])
def test_a_reward_models_head_stays_in_float32(adapter: dict[str, Any], tmp_path: Path):
    folder_in(BF16, tmp_path / "model")
    by_tensor = formats(trained(tmp_path, "reward", **adapter))
    assert by_tensor.pop("score.weight") == FP32
    assert set(by_tensor.values()) == {BF16}


def test_what_float16_cannot_hold_is_saved_in_float32():
    model, given = make("llama"), config.make("dpo", model="m", data="d")
    assert outputs.saved_format(given, model, FP16) == FP16
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e5
    assert outputs.saved_format(given, model, FP16) == FP32
    assert outputs.saved_format(given, model, BF16) == BF16


def test_the_format_of_a_folder_is_that_of_most_of_its_weights(tmp_path: Path):
    model = make("llama").to(BF16)
    model.model.norm.float()
    model.save_pretrained(tmp_path / "mixed")
    assert outputs.input_format(str(tmp_path / "mixed")) == BF16
    model.save_pretrained(tmp_path / "parts", max_shard_size=20_000)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert outputs.input_format(str(tmp_path / "parts")) == BF16
    assert outputs.input_format("", make("llama")) == FP32


def test_a_model_in_memory_is_what_it_was_but_for_its_training(tmp_path: Path):
    given = settings(tmp_path, tmp_path / "run", **QUICK)
    model = AutoModelForCausalLM.from_pretrained(given.pop("model"), dtype=BF16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    afzal.fit("dpo", model=model, tokenizer=tokenizer, **given, dtype="fp32")
    assert set(formats(tmp_path / "run").values()) == {BF16}
    assert len({p.device for p in model.parameters()}) == 1


@pytest.mark.parametrize("patience", [None, 1])
def test_checkpoints_are_gone_after_the_end(patience: int | None, tmp_path: Path):
    out = trained(tmp_path, save_every_steps=1, eval_every_steps=1, early_stop_patience=patience, lr=1e-30)
    assert not (out / "checkpoints").exists()
    assert not (out / "best").exists()
    assert runs.open_run(out).facts()["status"] == "finished"


def test_as_many_stay_as_are_asked_for(tmp_path: Path):
    out = trained(tmp_path, save_every_steps=1, keep_checkpoints=2)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = trained(tmp_path)
    before, facts = fingerprint(out), (out / "run.json").read_bytes()
    with one_thread():
        recipes.train(config.make("dpo", **settings(tmp_path, out, **QUICK)), resume=True)
    assert fingerprint(out) == before
    assert (out / "run.json").read_bytes() == facts
    assert "has finished: there is nothing left to do" in capsys.readouterr().err


@pytest.mark.parametrize("renamed", [False, True])
def test_a_run_killed_while_it_cleaned_up_is_cleaned_up_when_it_is_resumed(renamed: bool, tmp_path: Path):
    """Checkpoints are complete before the rename and gone after it: the run never restarts from a partial one."""
    out = trained(tmp_path, save_every_steps=1, keep_checkpoints=2)
    before = fingerprint(out)
    if renamed:
        (out / "checkpoints").rename(out / ".removed")
        (out / ".removed/step-00000003/manifest.json").unlink()
    given = settings(tmp_path, out, **(QUICK | {"save_every_steps": 1}))
    with one_thread():
        recipes.train(config.make("dpo", **given), resume=True)
    assert not (out / "checkpoints").exists()
    assert not (out / ".removed").exists()
    assert fingerprint(out) == before


def test_an_exported_adapter_has_the_format_of_its_base(tmp_path: Path):
    for dtype in (BF16, FP32):
        place = tmp_path / str(dtype)
        place.mkdir()
        folder_in(dtype, place / "model")
        out = trained(place, lora_rank=2)
        recipes.export(config.ExportConfig(model=str(out), out=str(place / "merged")))
        assert set(formats(place / "merged").values()) == {dtype}


def test_rounds_start_from_unrounded_weights():
    given = config.IterateConfig(model="m", prompts="p", reward="r")
    assert given.save_dtype == "fp32"
