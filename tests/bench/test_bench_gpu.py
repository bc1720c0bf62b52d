"""The command for a GPU: what it needs, what it runs, and what it does without."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.dpo_step import sides


def test_versions_are_compared_by_their_numbers():
    assert gpu.release("2.13.0+cpu") == (2, 13, 0)
    assert gpu.release("5.18.0.dev0") == (5, 18, 0)
    assert gpu.release("") == ()
    assert gpu.too_old({"torch": "2.11.0", "transformers": "5.17.0"}) == []
    assert gpu.too_old({"torch": "2.9.1", "transformers": "6.0"}) == [
        "torch 2.11 or newer is needed, and 2.9.1 is installed"
    ]
    assert gpu.too_old({"torch": "3.0", "transformers": ""}) == [
        "transformers 5.17 or newer is needed, and none is installed"
    ]


@pytest.mark.parametrize("small", [True, False])
def test_every_shape_the_wide_model_and_growth_are_run(small):
    jobs = gpu.jobs("cuda", small=small)
    names = ["hh", "tldr", "uf", "long", "wide"]
    assert [job.name for job in jobs] == [*(f"dpo-step-cuda-{name}" for name in names), "growth-cuda"]
    for job in jobs:
        assert job.arguments[:2] == ("--device", "cuda")
        assert importlib.util.find_spec(job.module) is not None
    assert ("--width" in jobs[0].arguments) == small


def test_pip_keeps_torch_and_asks_no_index_when_there_are_wheels():
    python, kept = Path("env/bin/python"), Path("keep.txt")
    offline = gpu.pip_install(python, kept, Path("wheels"), ["trl"])
    assert offline[-4:] == ["--no-index", "--find-links", "wheels", "trl"]
    online = gpu.pip_install(python, kept, None, ["trl", "peft>=0.18"])
    assert "--no-index" not in online
    for command in (offline, online):
        assert command[command.index("--constraint") + 1] == "keep.txt"
        assert command[command.index("--python") + 1] == "env/bin/python"


def test_only_requirements_that_are_not_there_are_missing():
    assert gpu.missing(["torch>=2.11", "no-such-package>=1", "numpy"]) == ["no-such-package>=1"]


def test_folders_of_packages_are_told_from_the_rest_of_the_path():
    path = ["", "/a/lib/python3.11", "/a/lib/python3.11/site-packages", "/usr/lib/python3/dist-packages"]
    assert list(gpu.package_paths(path)) == path[2:]


def test_the_last_line_of_pip_is_the_reason():
    assert gpu.last_line("Looking\nERROR: No matching distribution found for trl\n\n") == (
        "ERROR: No matching distribution found for trl"
    )
    assert gpu.last_line(" \n") == "no reason given"


def test_a_peer_that_cannot_be_imported_says_why(monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            raise RuntimeError(f"{name} needs\nanother transformers")

    monkeypatch.setitem(sys.modules, "trl", Broken("trl"))
    assert sides.unavailable("trl-best") == "RuntimeError: DPOConfig needs another transformers"
    assert sides.unavailable("plain") == ""


def test_a_peer_that_fails_is_left_out_and_afzal_is_not(capsys):
    from benchmarks.dpo_step.__main__ import _each

    left_out: dict[str, str] = {}

    def act(side: str) -> int:
        if side == "trl":
            raise RuntimeError("trl stopped") from MemoryError("no room")
        return 1

    assert _each(["afzal", "trl", "plain"], act, left_out) == {"afzal": 1, "plain": 1}
    assert left_out == {"trl": "MemoryError: no room"}
    assert "left out: trl: MemoryError: no room" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        _each(["afzal"], lambda side: 1 // 0, left_out)


@pytest.mark.slow
def test_the_whole_command_runs_small_on_a_cpu_without_an_index(tmp_path):
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    command += ["--out", str(out), "--wheels", str(wheels)]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = (out / "README.md").read_text()
    for job in gpu.jobs("cpu", small=True):
        assert f"## {job.name}\n" in page
    step = json.loads((out / "dpo-step-cpu-wide.json").read_text())
    assert [r["shape"] for r in step["shapes"]] == ["hh", "tldr", "uf"]
    for r in step["shapes"]:
        assert r["afzal"]["executed_over_minimum"] >= 1.0
        assert r["plain"]["ratio"]["low"] > 0
    if importlib.util.find_spec("trl") is None:
        assert "No module named 'trl'" in step["about"]["left_out"]["trl"]
        assert "trl" in json.loads((out / "run-cpu.json").read_text())["not installed"]["TRL"]
    assert json.loads((out / "growth-cpu.json").read_text())["groups"]["k4_in_pair_steps"] > 0
