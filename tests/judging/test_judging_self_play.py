"""Debaters trained on arguments ranked by the judge, as in docs/debate.md: rounds that are killed and resumed."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from helpers_runs import finished, kill_at, model_folder, start_command

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debate.md"
DECIDE = '''
import math, time


def decide(prompt, first, second, transcript):
    """A judge who counts the letters that an argument shares with either answer; slow enough to be killed."""
    time.sleep(0.004)
    gap = sum(c in first for c in transcript) - sum(c in second for c in transcript)
    return 1 / (1 + math.exp(-gap))


'''
KILLED_IN = (
    "rounds/000/measured.jsonl",
    "rounds/001/samples.jsonl",  # while the judge reads the arguments
    "rounds/001/run/metrics.jsonl",
    "rounds/002/samples.jsonl",
    "rounds/002/run/metrics.jsonl",
)


def files_of(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("rounds/*/*.jsonl"), *out.glob("rounds/*/run/model.safetensors"), out / "rounds.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


@pytest.mark.slow
def test_the_self_play_of_debaters_killed_in_any_stage_resumes_to_the_same_bytes(tmp_path):
    part = PAGE.read_text("utf-8").partition("## Training debaters")[2]
    (moved,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    (tmp_path / "debate.py").write_text(moved + DECIDE)  # a judge instead of the page's
    (block,) = re.findall(r"```json\n(.*?)```", part, re.DOTALL)
    row, turned = map(json.loads, block.splitlines())
    assert (row["own"], row["other"]) == (turned["other"], turned["own"])
    rows = []
    for k in range(16):  # both sides of each question
        for own, other in ((row["own"], row["other"]), (row["other"], row["own"])):
            rows.append({"prompt": f"{k}: defend {own} against {other}.", "own": own, "other": other})
    (tmp_path / "positions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model_folder(tmp_path / "model")
    given = {"model": tmp_path / "model", "prompts": tmp_path / "positions.jsonl", "rounds": 2, "max-new-tokens": 6}
    given |= {"reward": f"{tmp_path / 'debate.py'}:moved", "max-tokens": 80, "held-out": 4, "held-out-samples": 2}
    given |= {"batch-size": 4, "lr": 1e-3, "max-steps": 4, "eval-fraction": 0, "save-every-steps": 1, "device": "cpu"}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    command = ["iterate", *flags, "-n", "4", "require_eos=false"]
    assert finished(start_command([*command, "--out", str(tmp_path / "whole")]), 600) == 0
    expected, out = files_of(tmp_path / "whole"), tmp_path / "killed"
    ranked = [json.loads(line) for line in (tmp_path / "whole/rounds/002/scores.jsonl").read_text().splitlines()]
    assert len({r["reward"] for r in ranked}) > 2  # arguments move the judge by different amounts
    resume: list[str] = []
    killed = 0
    for marker in KILLED_IN:
        killed += (
            kill_at([*command, "--out", str(out), *resume], out / marker, after=0.02, patience=600) == -signal.SIGKILL
        )
        resume = ["--resume"]
    assert killed == len(KILLED_IN), "a stage was over before the signal came"
    assert finished(start_command([*command, "--out", str(out), "--resume"]), 600) == 0
    assert files_of(out) == expected
