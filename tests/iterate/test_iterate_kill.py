"""Rounds that are killed at any moment and resumed end with the same bytes as uninterrupted rounds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import finished, model_folder, pair_file, start_command

REWARD = """
def letters(prompt, answer):
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)

def early(prompt, answer):
    return float(sum(c in "abcdefghijkl" for c in answer))
"""
KILLS = 8
PATIENCE = 600.0  # seconds for a process, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kills")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl", 32)
    (path / "rewards.py").write_text(REWARD)
    return path


def arguments(folder: Path, out: Path, bound: str = "none") -> list[str]:
    given = {"model": folder / "model", "prompts": folder / "pairs.jsonl", "reward": f"{folder / 'rewards.py'}:letters"}
    given |= {"out": out, "n": 4, "max-new-tokens": 6, "max-tokens": 64, "held-out": 5, "held-out-samples": 2}
    given |= {
        "batch-size": 4,
        "lr": 1e-3,
        "epochs": 2,
        "rounds": 2,
        "eval-fraction": 0,
        "save-every-steps": 1,
        "device": "cpu",
    }
    flags = [part for name, value in given.items() for part in ("-n" if name == "n" else f"--{name}", str(value))]
    if bound == "cost":
        flags += ["--cost", f"{folder / 'rewards.py'}:early", "--cost-bound", "0.3", "--accumulate"]
    return ["iterate", *flags, "--device", "cpu", "require_eos=false"]


def fingerprint(out: Path) -> dict[str, bytes]:
    names = ("rounds.json", "rounds.csv", "samples.jsonl", "dropped.jsonl")
    paths = [*out.glob("rounds/*/*.jsonl"), *out.glob("rounds/*/run/model.safetensors"), *(out / n for n in names)]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["none", "cost"])
def test_rounds_killed_at_random_moments_resume_to_the_same_bytes(folder, bound):
    whole = folder / f"whole-{bound}"
    assert finished(start_command(arguments(folder, whole, bound)), PATIENCE) == 0
    n_stages, expected = len(stage_files(whole)), fingerprint(whole)
    assert len([name for name in expected if name.endswith("safetensors")]) == 2
    rng, killed, stages = random.Random(0), 0, set()
    for attempt in range(3 * KILLS):  # a run that finished before the signal does not count as killed
        out = folder / f"killed-{bound}-{attempt}"
        for target in sorted(rng.sample(range(n_stages), 2)):
            process = start_command([*arguments(folder, out, bound), *resumption(out)])
            wait_for(process, out, stages=target)
            time.sleep(rng.choice([0.0, rng.uniform(0, 0.3)]))  # most stages take an instant
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            killed += finished(process, PATIENCE) == -signal.SIGKILL
            stages.add(len(stage_files(out)))
        assert finished(start_command([*arguments(folder, out, bound), *resumption(out)]), PATIENCE) == 0
        assert fingerprint(out) == expected
        if killed >= KILLS and len(stages) > 3:
            break
    assert killed >= KILLS, "too few processes were still alive to be killed"
    assert len(stages) > 3, "the kills all fell into one stage"


def stage_files(out: Path) -> list[Path]:
    return list(out.glob("rounds/*/*.jsonl"))


def wait_for(process: Any, out: Path, *, stages: int) -> None:
    """Wait until ``stages`` stages have left their files: a measure of progress that does not depend on the load."""
    while process.is_alive() and len(stage_files(out)) < stages:
        time.sleep(0.001)


def resumption(out: Path) -> list[str]:
    """The flag that resumes a run; none, after removing the folder, if the kill came before a run existed."""
    if (out / "run.json").exists():
        return ["--resume"]
    shutil.rmtree(out, ignore_errors=True)
    return []
