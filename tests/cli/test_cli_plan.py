"""``afzal plan``: the table, JSON, refusals."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_tokenizers import CHATML, byte_tokenizer

from afzal import config
from afzal.api import planning as module
from afzal.cli import main


def out(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plan", *args]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_table_says_what_is_needed(capsys: pytest.CaptureFixture[str]):
    said = out(capsys, "--model", "llama-3.2-3b", "--price", "2")
    assert "llama-3.2-3b: 3,212,749,824 weights, all train" in said
    assert "chosen here: nodes, gpus, shards, tensor, checkpointing" in said
    for word in (
        "optimiser",
        "activations",
        "total",
        "loading",
        "fits",
        "updates",
        "cost",
        "assumed",
        "nothing here was timed",
    ):
        assert word in said


def test_json_adds_up(capsys: pytest.CaptureFixture[str]):
    plan = json.loads(out(capsys, "--model", "llama-3.1-8b", "--lora-rank", "16", "--json"))
    assert sum(plan["memory"]["terms"].values()) == pytest.approx(plan["memory"]["total"])
    assert plan["memory"]["fits"] is True
    assert plan["layout"]["devices"] == 1
    assert plan["trained_parameters"] == 41_943_040
    assert plan["data"]["tokens"] == 10_000 * 768
    assert plan["flops_per_update"]["executed"] >= plan["flops_per_update"]["useful"]
    assert plan["cost"] is None


def test_what_does_not_fit_is_shown_and_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--model", "llama-3.1-70b", "--nodes", "1", "--gpus", "8"]) == 2
    shown = capsys.readouterr()
    assert "DOES NOT FIT" in shown.out
    assert "the largest term is" in shown.err
    assert "--lora-rank" in shown.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "llama-3.1-8"], "did you mean llama-3.1-8b"),
        (["--model", "llama-3.1-8b", "--hardware", "h1000"], "did you mean h100"),
        (["--model", "llama-3.1-8b", "--frozen-weights", "nf4"], "without lora_rank all weights train"),
        (["--model", "llama-3.1-8b", "--max-tokens", "4"], "there is no data"),
        (["--model", "llama-3.1-8b", "--data", "x.jsonl", "--items", "4"], "the lengths come from data"),
        (["--model", "llama-3.1-8b", "--mfu", "2"], "mfu"),
        (["dop", "--model", "llama-3.1-8b"], "dpo"),
        (["--model", "llama-3.1-8b", "--ppo-epochs", "2"], "dpo learns from data, not from rewards"),
        (["rloo", "--model", "llama-3.1-8b", "--value", "shared"], "rloo trains no value model"),
        (["sft", "--model", "llama-3.1-8b", "--reference", "live"], "sft has no reference"),
        (
            ["grpo", "--model", "llama-3.1-8b", "--reference", "cached"],
            "scores its answers under a reference as it runs",
        ),
        (["rloo", "--model", "llama-3.1-8b", "--minibatches", "99"], "need at least as many prompts"),
        (["ppo", "--model", "llama-3.1-8b", "--lora-rank", "8", "--frozen-weights", "nf4"], "value=shared"),
        (["--model", "llama-3.1-8b", "--nodes", "1", "--gpus", "1", "--link", "0.5"], "one device has no links"),
    ],
)
def test_wrong_settings_are_refused_by_name(args: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *args]) == 2
    assert said in capsys.readouterr().err


def test_an_iteration_of_rewards_has_its_own_lines(capsys: pytest.CaptureFixture[str]):
    asked = ["ppo", "--model", "llama-3.2-1b", "--nodes", "1", "--gpus", "1", "--minibatches", "2"]
    said = out(capsys, *asked)
    for words in ("one iteration", "64 answers to 64 prompts", "rewards, values", "8 of them", "value model"):
        assert words in said
    iteration = json.loads(out(capsys, *asked, "--json"))["iteration"]
    assert (iteration["prompts"], iteration["answers"], iteration["updates"]) == (64, 64, 8)
    assert sum(iteration["shares"].values()) == pytest.approx(1)
    assert iteration["seconds"]["total"] == pytest.approx(sum(list(iteration["seconds"].values())[:-1]))
    assert json.loads(out(capsys, "--model", "llama-3.2-1b", "--json"))["iteration"] is None


def test_hardware_can_be_given_in_numbers(capsys: pytest.CaptureFixture[str]):
    numbers = [
        "--memory-gb",
        "50",
        "--tflops",
        "100",
        "--bandwidth-gbs",
        "900",
        "--intra-gbs",
        "60",
        "--inter-gbs",
        "6",
    ]
    hardware = json.loads(out(capsys, "--model", "llama-3.2-1b", *numbers, "--json"))["hardware"]
    assert (hardware["memory"], hardware["bf16"], hardware["bandwidth"]) == (50e9, 100e12, 900e9)
    assert (hardware["intra"], hardware["inter"]) == (60e9, 6e9)


def test_a_file_is_measured_by_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    byte_tokenizer(template=CHATML).save_pretrained(tmp_path / "tokenizer")
    rows = [
        {"prompt": "abcd", "chosen": "ab", "rejected": "abc"},
        {"prompt": "abcdef", "chosen": "a", "rejected": "abcdefgh"},
    ]
    (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ["--data", str(tmp_path / "prefs.jsonl"), "--tokenizer", str(tmp_path / "tokenizer")]
    counts = json.loads(out(capsys, "--model", "llama-3.2-1b", *source, "--json"))["data"]
    ends = counts["scored"] - (2 + 3 + 1 + 8)
    assert ends == 4  # one end per response
    assert counts["items"] == 2
    assert counts["tokens"] - counts["scored"] >= 4 + 6
    online = json.loads(out(capsys, "rloo", "--model", "llama-3.2-1b", *source, "--json"))["data"]
    assert online["scored"] == 4 * (2 + 1 + 2)  # the good answers represent each of the four that will be generated


def test_no_model_library_is_loaded(tmp_path: Path):
    code = "import sys; from afzal.cli import main; main(['plan', '--model', 'llama-3.1-8b']); "
    code += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_setting_is_read():
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert set(config.PlanConfig.model_fields) <= read
