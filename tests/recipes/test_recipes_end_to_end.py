"""Complete runs: folder contents, causes for a stop, and changes without effect."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import dropped_lines, model_folder, pair_file, settings

from afzal import config, data, objectives, recipes, runs
from afzal.errors import AfzalError
from afzal.generate.run import generate
from afzal.model.load import add_lora, load_model, switch_off_dropout
from afzal.model.probe import choose_sharing
from afzal.model.reference import cached, live_reference
from afzal.prepare import prepare
from afzal.train.feed import Feed, Layout
from afzal.train.method import Method
from afzal.train.precision import Weights
from afzal.train.update import accumulate

SHORT = {"max_steps": 3, "save_every_steps": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


def train(folder, name, method="dpo", **overrides):
    return runs.open_run(recipes.train(config.make(method, **settings(folder, folder / name, **(SHORT | overrides)))))


def adapted_again(model, tmp_path):
    """An adapter that was trained, saved and loaded, so that training does not start from the base."""
    first = add_lora(model, rank=2, alpha=4)
    with torch.no_grad():
        for name, p in first.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return first


STARTS = {
    "full": lambda m, _: (m, False),
    "lora": lambda m, _: (add_lora(m, rank=2, alpha=4), True),
    "sft-adapter": lambda m, t: (adapted_again(m, t), False),
    "lora-and-head": lambda m, _: (add_lora(m, rank=2, alpha=4, trained_in_full=["lm_head"]), True),
}


@pytest.mark.parametrize("dropout", [0.1, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["live", "cached"])
@pytest.mark.parametrize("start", STARTS)
def test_the_first_loss_is_ln2_in_all_32_combinations(start, kind, dtype, dropout, tmp_path):
    model = make("gpt2", attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout)
    switch_off_dropout(model)
    model, fresh = STARTS[start](model, tmp_path)
    model.train()  # dropout would act now, if it were on
    sharing = choose_sharing(model)[0]
    Weights(model, dtype)
    trees, layout = random_trees(8), Layout(sharing, 100)
    reference = live_reference(model, fresh_adapter=fresh)
    if kind == "cached":
        where = {"key": "k", "sharing": sharing, "budget": 100, "device": "cpu"}
        reference = cached(reference, trees, tmp_path, **where)
    method = Method.of(objectives.get("dpo"), {"beta": 0.1}, reference)
    loss, _, _ = accumulate(model, method, Feed(trees, (), 8, 0, layout).update(0))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


def test_a_finished_folder_loads_and_generates_with_plain_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(folder, "plain")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.path), AutoTokenizer.from_pretrained(run.path)
    inputs = tokenizer("Q1: how 3?", return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    names = {p.name for p in run.path.iterdir()}
    files = "README.md report.html run.yaml run.json metrics.jsonl samples.jsonl dropped.jsonl data.json"
    assert {*files.split(), "model.safetensors", "generation_config.json"} <= names
    assert not [p for p in run.path.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id


def test_a_lora_folder_loads_through_peft_and_trains_on(folder):
    from peft import AutoPeftModelForCausalLM

    first = train(folder, "lora-first", "sft", lora_rank=2, lr=1e-2)
    AutoPeftModelForCausalLM.from_pretrained(first.path)
    second = train(folder, "lora-second", model=str(first.path))
    assert second.metrics("train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second.facts()["reference"].startswith("frozen copy")
    with pytest.raises(AfzalError, match="is an adapter already"):
        train(folder, "lora-third", model=str(first.path), lora_rank=2)


def test_a_chat_run_saves_the_template_it_trained_with(folder, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "chosen": [{"role": "assistant", "content": f"please {i}"}],
            "rejected": [{"role": "assistant", "content": f"no {i}"}],
        }
        for i in range(12)
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    from transformers import AutoTokenizer

    for method in ("sft", "dpo", "kto"):
        run = train(folder, f"chat-{method}", method, data=str(path))
        assert AutoTokenizer.from_pretrained(run.path).chat_template
        assert run.facts()["chat"] is True
        _the_samples_are_data(run.path, rows)


def _the_samples_are_data(run: Path, rows: list[dict[str, Any]]) -> None:
    """The samples of a run are answers as `afzal generate` writes them, to the prompts as the data had them."""
    read = data.read(str(run / "samples.jsonl"))
    assert read.format == "prompt_completion"
    lines = list(runs.read_jsonl(run / "samples.jsonl"))
    assert {line["stage"] for line in lines} == {"before", "after"}
    assert [item.responses[0].turns[0].content for item in read.items] == [line["completion"] for line in lines]
    assert all(line["prompt"] in [row["prompt"] for row in rows] for line in lines)
    assert all(line["prompt"][0]["content"] in line["rendered"] for line in lines)
    assert all(line["prompt"][0]["content"] != line["rendered"] for line in lines)  # the template's own words


@pytest.fixture(scope="module")
def plain(folder):
    return train(folder, "off", max_steps=6)


@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
        {"reference": "cached"},
        {"sharing": "unshared"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_only_a_way_of_computing_leaves_the_trajectory_alone(folder, plain, change):
    name = "-".join(str(part) for pair in change.items() for part in pair)
    other = train(folder, f"{name}-on", max_steps=6, **change)
    for a, b in zip(plain.metrics("train"), other.metrics("train"), strict=True):
        for key in ("loss", "grad_norm", "rewards/margins"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5)


def test_early_stop_keeps_the_best_weights(folder):
    run = train(folder, "early", lr=0.3, max_grad_norm=1e3, max_steps=None, eval_every_steps=1, early_stop_patience=2)
    evals = run.metrics("eval")
    best = min(evals, key=lambda r: r["loss"])
    assert run.facts()["kept_step"] == best["step"]
    assert evals[-1]["step"] == best["step"] + 2
    given = settings(folder, folder / "unused")
    if best["step"] == 0:
        ours, start = load_model(str(run.path)).state_dict(), load_model(given["model"]).state_dict()
        assert all(torch.equal(ours[k], start[k]) for k in start)


def test_non_finite_weights_stop_the_run_before_the_first_update(folder, tmp_path):
    broken = model_folder(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if "mlp.up_proj" in n)
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    given = settings(folder, tmp_path / "run", model=str(broken))
    with pytest.raises(AfzalError):
        recipes.train(config.make("dpo", **given))
    run = runs.open_run(tmp_path / "run")
    assert run.facts()["status"] == "failed"
    assert not list(run.checkpoints.glob("step-*"))


def test_overlapping_held_out_prompts_are_said_aloud(folder, tmp_path):
    given = settings(folder, tmp_path / "run")
    given.pop("eval_fraction")
    prepared = prepare(config.make("dpo", **given, eval_data=given["data"]))
    assert any("also trained on" in note for note in prepared.notes)


def test_the_split_shares_no_prompt(folder):
    prepared = prepare(config.make("dpo", **settings(folder, folder / "x")))
    train_prompts, held_out = ({t.prompt.tobytes() for t in ts} for ts in (prepared.train, prepared.evaluation))
    assert held_out
    assert not train_prompts & held_out


def test_a_plan_loads_no_model(folder, monkeypatch):
    monkeypatch.setattr(recipes.train.__globals__["load_model"], "__call__", None, raising=False)
    monkeypatch.setitem(recipes.train.__globals__, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    lines = recipes.plan(config.make("dpo", **settings(folder, folder / "planned")))
    assert any("updates of 8 items" in line for line in lines)
    assert not (folder / "planned").exists()


@pytest.mark.parametrize("method", ["dpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_every_row_of_the_hh_sample_is_accounted_for(shared, method):
    source = shared / "data/pref/hh_rlhf_harmless_a.jsonl.gz"
    prepared = prepare(config.make(method, model=str(shared / "data/models/stories260k"), data=str(source)))
    whole = [x for x in dropped_lines(prepared) if x["unit"] in ("row", "item") and x["action"] == "dropped"]
    assert len(prepared.train) + len(prepared.evaluation) + len(whole) == prepared.facts["rows"] == 1492
    assert max(len(t.prompt) + max(len(b.ids) for b in t.branches) for t in prepared.train) <= 512


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_says_how_to_go_on_and_exits_as_shells_expect(folder, tmp_path, number, code):
    given = settings(folder, tmp_path / "run")
    command = [sys.executable, "-m", "afzal", "train", "dpo", "--model", given["model"], "--data", given["data"]]
    command += ["--out", given["out"], "--batch-size", "1", "--epochs", "200", "--sample-prompts", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "--resume" in said
    run = runs.open_run(tmp_path / "run")
    assert run.facts()["status"] == "stopped"
    assert list(run.checkpoints.glob("step-*"))


def test_generate_is_reproducible_by_its_seed(folder, tmp_path, capsys):
    run = train(folder, "speaks")
    prompts = pair_file(tmp_path / "prompts.jsonl", n=5)
    texts = []
    for name in ("a", "b"):
        given = {"model": str(run.path), "prompts": str(prompts), "out": str(tmp_path / f"{name}.jsonl"), "n": 2}
        made = config.build(config.GenerateConfig, [config.Setting(k, v) for k, v in given.items()])
        texts.append(generate(made).read_text())
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 10
    one = {"model": str(run.path), "prompt": "Q1:", "max_new_tokens": 4}
    generate(config.build(config.GenerateConfig, [config.Setting(k, v) for k, v in one.items()]))
    assert capsys.readouterr().out.startswith("Q1:")
