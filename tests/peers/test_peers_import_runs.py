"""TRL from its YAML, and Afzal from the settings that ``afzal import`` makes of it: the same rows, the same figures.

All rows are in one update, so that the order of rows does not matter. Needs TRL 1.16 (``make peers``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_runs import pair_file, settings

from afzal import config, recipes, runs
from afzal.peers import as_yaml, import_config

trl = pytest.importorskip("trl", reason="TRL is not installed here (make peers)")
pytestmark = pytest.mark.slow

N, STEPS = 12, 4


def theirs(method: str, file: Path) -> list[dict]:
    """The logged metrics of ``trl METHOD --config FILE``."""
    from importlib import import_module

    script = import_module(f"trl.scripts.{method}")
    arguments = script.make_parser().parse_args_and_config(["--config", str(file)])
    script.main(*arguments)
    (state,) = Path(arguments[1].output_dir).glob("checkpoint-*/trainer_state.json")
    return [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def ours(file: Path, folder: Path) -> list[dict]:
    """The metrics of the run that the imported settings make."""
    made = import_config(file)
    (folder / "ours.yaml").write_text(as_yaml(made), encoding="utf-8")
    run = config.load(folder / "ours.yaml", [f"out={folder / 'ours'}"])
    recipes.train(run)
    return runs.open_run(folder / "ours").metrics("train")


def write(folder: Path, text: str, kind: str) -> Path:
    model = settings(folder, folder / "unused")["model"]
    pair_file(folder / "pairs.jsonl", n=N)
    if kind == "sft":
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        text_rows = [json.dumps({"prompt": r["prompt"], "completion": r["chosen"]}) for r in rows]
        (folder / "pairs.jsonl").write_text("\n".join(text_rows), encoding="utf-8")
    file = folder / f"{kind}.yaml"
    file.write_text(
        f"model_name_or_path: {model}\noutput_dir: {folder / 'theirs'}\n"
        f"datasets:\n  - path: json\n    data_files: {folder / 'pairs.jsonl'}\n    split: train\n"
        f"per_device_train_batch_size: {N}\nmax_steps: {STEPS}\nlogging_steps: 1\nsave_steps: {STEPS}\n"
        f"bf16: false\nuse_cpu: true\ngradient_checkpointing: false\nreport_to: none\n{text}",
        encoding="utf-8",
    )
    return file


CASES = {
    "plain": ("dpo", "learning_rate: 3.0e-4\nloss_type: [sigmoid]\nbeta: 0.2\n"),
    "sum": ("dpo", "learning_rate: 3.0e-4\nloss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.5]\nweight_decay: 0.1\n"),
    "ipo": ("dpo", "learning_rate: 3.0e-4\nloss_type: ipo\nbeta: 0.5\nlr_scheduler_type: cosine\n"),
    "cut": ("dpo", "learning_rate: 3.0e-4\nloss_type: [apo_zero, sft]\nmax_length: 26\nlr_scheduler_type: constant\n"),
    "sft": ("sft", "learning_rate: 1.0e-3\npacking: false\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_updates_agree(tmp_path, name):
    method, text = CASES[name]
    file = write(tmp_path, text, method)
    there, here = theirs(method, file), ours(file, tmp_path)
    assert len(there) == len(here) == STEPS
    shared = ["loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins"]
    if name == "ipo":
        shared.remove("rewards/margins")  # of means over tokens here, of sums in TRL
    for a, b in zip(here, there, strict=True):
        for key in shared:
            if key in b:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-3), (a["step"], key)
    assert here[-1]["loss"] < here[0]["loss"] - 1e-3, "nothing was learnt, so agreement would say little"
