"""Runs of several ranks that are stopped, killed and resumed, with another number of ranks or damaged files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import run_ranks
from helpers_runs import command_line
from test_recipes_ranks import assert_same, given, metrics, rank_of

QUIET = {"sample_prompts": 0, "eval_every_steps": 1000}


def bits(out: Path) -> tuple[bytes, str]:
    """Weights, and metrics without times."""
    lines = [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in metrics(out)]
    return (out / "model.safetensors").read_bytes(), json.dumps(lines)


def parts(folder: Path) -> int:
    """The number of ranks that wrote the newest checkpoint."""
    newest = max((folder / "checkpoints").iterdir())
    return len(list(newest.glob("model*.safetensors")))


@pytest.mark.slow
def test_two_ranks_then_one_then_two_end_as_two_that_never_stopped(tmp_path):
    """Each stage loads the checkpoint of the previous one, in parts if two ranks wrote it; all figures are the same."""
    whole = given(tmp_path, "whole", "dpo", max_steps=6, sample_prompts=0)
    stages = given(tmp_path, "stages", "dpo", max_steps=6, sample_prompts=0, save_every_steps=2, keep_checkpoints=9)
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    line = command_line("dpo", stages)
    kept = tmp_path / "stages" / "checkpoints"
    assert run_ranks(line, 2) == [0, 0]
    for after, n in ((2, 1), (4, 2)):
        for path in kept.iterdir():
            if int(path.name[-8:]) > after:
                shutil.rmtree(path)
        assert parts(tmp_path / "stages") == 3 - n
        assert run_ranks([*line, "--resume"], n) == [0] * n
    assert_same(tmp_path / "whole", tmp_path / "stages")


@pytest.mark.slow
def test_a_damaged_part_and_both_ranks_go_on_from_the_checkpoint_before(tmp_path):
    kept = {"max_steps": 5, "save_every_steps": 1, "keep_checkpoints": 5, **QUIET}
    whole, hurt = (given(tmp_path, out, "dpo", **kept) for out in ("whole", "hurt"))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    line = command_line("dpo", hurt)
    assert run_ranks(line, 2) == [0, 0]
    victim = max((tmp_path / "hurt" / "checkpoints").iterdir()) / "optimizer-00002-of-00002.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert run_ranks([*line, "--resume"], 2) == [0, 0]
    assert bits(tmp_path / "hurt") == bits(tmp_path / "whole")


def reached(out: Path) -> int:
    """The last step that was logged."""
    return metrics(out)[-1]["step"] if (out / "metrics.jsonl").exists() and metrics(out) else 0


def kill(mark: str, rank: int) -> bool:
    """Kill a rank, if it is running."""
    try:
        os.kill(rank_of(mark, rank), signal.SIGKILL)
    except (AssertionError, ProcessLookupError):
        return False
    return True


def wait(until: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        if until():
            return
        assert run.poll() is None, "the launcher has ended"
        time.sleep(0.05)
    raise AssertionError("nothing happened for five minutes")


def kill_ranks(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill random ranks of one run at random steps under torchrun, then compare it with an undisturbed run.

    Returns the steps at which ranks were killed and which ones, and whether weights and metrics have the same bits.
    """
    chance = random.Random(seed)
    many = {"epochs": 4.0 * kills, "save_every_steps": 1, "keep_checkpoints": 2, **QUIET}
    whole, killed = (given(folder, out, "dpo", **many) for out in ("whole", "killed"))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    steps = metrics(folder / "whole")[-1]["step"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, "--max-restarts", str(kills), "-m", "afzal", *command_line("dpo", killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AFZAL_TEST": str(folder)}
    log, at = folder / "log.txt", []
    with log.open("w") as out:
        run = subprocess.Popen(line, env=environment, stdout=out, stderr=out)
    try:
        for step in sorted(chance.sample(range(1, steps - 4), kills)):
            wait(lambda step=step: reached(folder / "killed") >= step, run)
            time.sleep(chance.uniform(0, 0.2))
            victim = chance.randrange(2)
            wait(lambda victim=victim: kill(str(folder), victim), run)
            at.append([reached(folder / "killed"), victim])
        code = run.wait(timeout=300)
    finally:
        run.terminate()  # the launcher ends its ranks
        run.wait()
    said = log.read_text()
    same = code == 0 and bits(folder / "killed") == bits(folder / "whole")
    return {"killed_at": at, "of": steps, "same": same, "passed_over": said.count("falling back"), "log": said}


@pytest.mark.slow
def test_ranks_killed_at_five_random_steps_end_with_the_same_bits(tmp_path):
    outcome = kill_ranks(tmp_path, 5, seed=0)
    assert outcome["same"], outcome["log"]
    assert outcome["passed_over"] == 0


if __name__ == "__main__":  # 20 kills: python tests/recipes/test_recipes_ranks_kill.py
    for number in range(4):
        with tempfile.TemporaryDirectory() as place:
            result = kill_ranks(Path(place), 5, seed=number + 1)
            print(json.dumps({name: value for name, value in result.items() if name != "log"}), flush=True)
