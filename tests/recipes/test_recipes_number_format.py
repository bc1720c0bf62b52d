"""``dtype=auto`` on a CPU: bf16 if it is faster there and the model survives rounding; else float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_runs import fingerprint, one_thread, settings

from afzal import config, recipes, runs
from afzal.recipes import setup

QUICK = {"max_steps": 3, "epochs": 1.0, "sample_prompts": 0, "keep_checkpoints": 9}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Sets the speed of bf16, for a model of 32 features that counts as wide enough."""

    def has(speedup: float, *, narrowest: int = 32, gap: str = "") -> None:
        monkeypatch.setattr(setup, "bf16_speedup", lambda: speedup)
        monkeypatch.setattr(setup, "NARROWEST", narrowest)
        if gap:
            monkeypatch.setattr(setup, "survives_rounding", lambda *_: gap)

    return has


def train(tmp_path: Path, name: str, *, resume: bool = False, **overrides: Any) -> runs.Run:
    given = config.make("dpo", **settings(tmp_path, tmp_path / name, **(QUICK | overrides)))
    with one_thread():
        return runs.open_run(recipes.train(given, resume=resume))


def format_of(run: runs.Run) -> str:
    return run.facts()["runtime"]["dtype"]


def test_a_processor_with_fast_bf16_trains_as_with_dtype_bf16(tmp_path: Path, processor: Any, capsys: Any):
    processor(4.0)
    auto = train(tmp_path, "auto")
    assert "computes in bf16, whose products are 4.0 times as fast as those of fp32" in capsys.readouterr().err
    bf16, fp32 = train(tmp_path, "bf16", dtype="bf16"), train(tmp_path, "fp32", dtype="fp32")
    assert [format_of(run) for run in (auto, bf16, fp32)] == ["bf16", "bf16", "fp32"]
    assert fingerprint(auto.path) == fingerprint(bf16.path)
    assert fingerprint(auto.path)["weights"] != fingerprint(fp32.path)["weights"]
    assert "computes in" not in capsys.readouterr().err


@pytest.mark.parametrize("which", ["hardly faster", "a narrow model", "a model that rounding changes"])
def test_float32_stays_where_bf16_is_of_no_use(which: str, tmp_path: Path, processor: Any, capsys: Any):
    if which == "hardly faster":
        processor(1.4)
    elif which == "a narrow model":
        processor(4.0, narrowest=33)
    else:
        processor(4.0, gap="a token's log-prob differs by 7 nats")
    run = train(tmp_path, "run")
    said = capsys.readouterr().err
    assert format_of(run) == "fp32"
    assert ("computes in fp32, since in bf16 a token's log-prob differs by 7 nats" in said) == which.endswith("changes")
    assert "computes in bf16" not in said
    assert fingerprint(run.path) == fingerprint(train(tmp_path, "fp32", dtype="fp32").path)


def test_a_resumed_run_keeps_its_format_on_another_processor(tmp_path: Path, processor: Any):
    processor(4.0)
    expected = fingerprint(train(tmp_path, "run").path)
    processor(0.5)
    run = runs.open_run(tmp_path / "run")
    for checkpoint in sorted((run.path / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    run.update(status="running", step=1)
    resumed = train(tmp_path, "run", resume=True)
    assert format_of(resumed) == "bf16"
    assert fingerprint(resumed.path) == expected
