"""A run can be resumed from every step, and always ends with the same bytes as an uninterrupted run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import command_line, fingerprint, model_folder, one_thread, pair_file, settings

from afzal.cli import main
from afzal.train import checkpoint

STEPS = 24
ONLY_POLICY = ("sample_prompts", "sample_tokens")
# 64 pairs to train on: three epochs of eight updates, each of several forward passes
COMMON: dict[str, Any] = {"epochs": 3.0, "tokens_per_forward": 256, "keep_checkpoints": STEPS + 1, "lr": 3e-4}
ROLLOUTS: dict[str, Any] = {"iterations": 6, "ppo_epochs": 2, "minibatches": 2, "sample_tokens": 6}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "irl": ("irl", {}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {"batch_size": 16}),
    "orpo": ("prefer", {"objective": "orpo"}),
    "ppo": ("ppo", ROLLOUTS | {"batch_size": 4}),
}


def given(tmp_path: Path, name: str) -> tuple[str, dict[str, Any]]:
    method, overrides = METHODS[name]
    model_folder(tmp_path / "model", attention_dropout=0.1)
    pair_file(tmp_path / "pairs.jsonl", 80)
    values = settings(tmp_path, tmp_path / "whole", **(COMMON | overrides))
    if method == "ppo":
        (tmp_path / "reward.py").write_text("def polite(prompt, answer):\n    return float(answer.count('e'))\n")
        values = {k: v for k, v in values.items() if k != "epochs"} | {"reward": f"{tmp_path}/reward.py:polite"}
    if method == "irl":
        rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
        drawn = [{"prompt": r["prompt"], "completion": r["rejected"]} for r in rows]
        (tmp_path / "drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
        values |= {"samples": f"{tmp_path}/drawn.jsonl"}
    scores = method in ("reward", "irl")
    return method, {k: v for k, v in values.items() if not scores or k not in ONLY_POLICY}


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_step_resumes_to_the_same_bytes(tmp_path, name):
    method, settings_ = given(tmp_path, name)
    whole = Path(settings_["out"])
    with one_thread():
        assert main(command_line(method, settings_)) == 0
        saved = {step for step, _ in checkpoint.listed(whole / "checkpoints")}
        assert saved >= set(range(1, STEPS + 1))
        assert [line["step"] for line in metrics(whole) if line.get("kind") == "train"] == list(range(1, STEPS + 1))
        expected = fingerprint(whole)
        for step in range(1, STEPS + 1):
            out = tmp_path / "cut"
            shutil.copytree(whole, out)
            for later, path in checkpoint.listed(out / "checkpoints"):
                if later > step:
                    shutil.rmtree(path)
            (out / "model.safetensors").unlink()
            assert main(command_line(method, settings_ | {"out": str(out)}, "--resume")) == 0
            assert fingerprint(out) == expected, f"after step {step}"
            shutil.rmtree(out)
