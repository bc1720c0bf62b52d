"""The GPU benchmark command: its requirements, what it runs, and what it can do without."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from benchmarks.dpo_step import sides
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import install, parts


def test_versions_are_compared_by_their_numbers():
    assert install.release("2.13.0+cpu") == (2, 13, 0)
    assert install.release("5.18.0.dev0") == (5, 18, 0)
    assert install.release("") == ()
    assert install.too_old({"torch": "2.11.0", "transformers": "5.17.0"}) == []
    assert install.too_old({"torch": "2.9.1", "transformers": "6.0"}) == [
        "torch 2.11 or newer is needed, and 2.9.1 is installed"
    ]
    assert install.too_old({"torch": "3.0", "transformers": ""}) == [
        "transformers 5.17 or newer is needed, and none is installed"
    ]


def _device_of(arguments: tuple[str, ...]) -> str:
    return arguments[arguments.index("--device") + 1]


@pytest.mark.parametrize("tiny", [True, False])
def test_the_parts_exist_the_most_important_first(tiny):
    plan = parts.parts("cuda", tiny=tiny)
    names = [part.name for part in plan]
    assert names[:3] == ["dpo-step-cuda-1b", "dpo-step-cuda-8b-lora", "parity-cuda"]
    assert len(set(names)) == len(names)
    assert all(importlib.util.find_spec(part.module) for part in plan)
    assert all(_device_of(p.arguments) == "cuda" for p in plan if p.module != "benchmarks.gpu.parity")
    assert ("--width" in plan[0].arguments) == tiny
    quick = [part.name for part in plan if command.wanted(part, True, [])]
    assert quick[:2] == names[:2]
    assert len(quick) < len(names)
    assert [p.name for p in plan if command.wanted(p, True, ["growth-cuda"])] == ["growth-cuda"]


@pytest.mark.parametrize("tiny", [True, False])
def test_the_arguments_of_every_part_are_understood(tiny, monkeypatch, tmp_path):
    """Parsed by the commands' own parsers: a typo here would waste a GPU session."""
    from benchmarks import generation, growth
    from benchmarks.dpo_step import __main__ as step
    from benchmarks.real_run import __main__ as real_run

    parsers = {"benchmarks.dpo_step": step._arguments, "benchmarks.generation": generation.arguments}
    parsers |= {"benchmarks.growth": growth._arguments, "benchmarks.real_run": real_run._arguments}
    if importlib.util.find_spec("benchmarks.attention"):
        parsers["benchmarks.attention"] = importlib.import_module("benchmarks.attention")._arguments
    for part in parts.parts("cuda", tiny=tiny):
        if part.module in parsers:
            late = ["--seconds", "100"] if part.timed else []
            monkeypatch.setattr(sys, "argv", ["bench", *part.arguments, "--out", str(tmp_path / "x.json"), *late])
            assert parsers[part.module]().device == "cuda"


def _part(tmp_path: Path, monkeypatch, code: str, minutes: float = 1.0) -> parts.Part:
    (tmp_path / "some_part.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return parts.Part("some-part", "some_part", (), minutes)


_COUNTS = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
n = json.loads(file.read_text())["n"] if file.exists() else 0
file.write_text(json.dumps({"n": n + 1, "finished": n + 1 == 2}))
"""


def test_a_part_runs_until_its_file_is_complete_and_no_more(tmp_path, monkeypatch):
    part, file = _part(tmp_path, monkeypatch, _COUNTS), tmp_path / "some-part.json"
    for n in (1, 2, 2):
        assert command.run(part, Path(sys.executable), tmp_path, None) == "done"
        assert json.loads(file.read_text())["n"] == n


def test_a_part_that_fails_says_why(tmp_path, monkeypatch):
    part = _part(tmp_path, monkeypatch, "raise SystemExit('no room for it')")
    assert command.run(part, Path(sys.executable), tmp_path, None) == "exit code 1: no room for it"
    assert "no room for it" in (tmp_path / "some-part.log").read_text()


def test_a_part_ends_with_its_time_and_none_starts_without(tmp_path, monkeypatch):
    child = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    part = _part(tmp_path, monkeypatch, child, minutes=0.02)
    assert command.run(part, Path(sys.executable), tmp_path, None) == "stopped: out of time"
    assert command.run(part, Path(sys.executable), tmp_path, 5.0) == "not started: out of time"
    assert not (tmp_path / "some-part.json").exists()


_TESTS = """
import pytest
@pytest.mark.gpu
def test_holds(): pass
@pytest.mark.gpu
def test_does_not(): assert 1 == 2
@pytest.mark.gpu
def test_left_out(): pytest.skip("no GPU")
def test_of_the_cpu(): assert False
"""


def test_tests_for_the_gpu_are_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(_TESTS)
    out = tmp_path / "parity.json"
    line = [sys.executable, "-m", "benchmarks.gpu.parity", "--out", str(out), "--tests", str(tmp_path)]
    subprocess.run(line, cwd=install.ROOT, check=True, capture_output=True)
    counts = json.loads(out.read_text())
    assert counts["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert [name.rpartition("::")[2] for name in counts["failed"]] == ["test_does_not"]


def test_pip_keeps_torch_and_asks_no_index_when_there_are_wheels():
    python, kept = Path("env/bin/python"), Path("keep.txt")
    offline = install.pip_install(python, kept, Path("wheels"), ["trl"])
    assert offline[-4:] == ["--no-index", "--find-links", "wheels", "trl"]
    online = install.pip_install(python, kept, None, ["trl", "peft>=0.18"])
    assert "--no-index" not in online
    for line in (offline, online):
        assert line[line.index("--constraint") + 1] == "keep.txt"
        assert line[line.index("--python") + 1] == "env/bin/python"


def test_only_requirements_that_are_not_there_are_missing():
    assert install.missing(["torch>=2.11", "no-such-package>=1", "numpy"]) == ["no-such-package>=1"]


def test_package_folders_are_distinguished_from_the_rest_of_the_path():
    path = ["", "/a/lib/python3.11", "/a/lib/python3.11/site-packages", "/usr/lib/python3/dist-packages"]
    assert list(install.package_paths(path)) == path[2:]


def test_the_last_line_of_pip_is_the_reason():
    assert install.last_line("Looking\nERROR: No matching distribution found for trl\n\n") == (
        "ERROR: No matching distribution found for trl"
    )
    assert install.last_line(" \n") == "no reason given"


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
def test_the_complete_command_runs_small_on_a_cpu_without_an_index(tmp_path):
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    line = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny"]
    line += ["--out", str(out), "--wheels", str(wheels)]
    done = subprocess.run(line, cwd=install.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = (out / "README.md").read_text()
    for part in parts.parts("cpu", tiny=True):
        assert f"## {part.name}\n" in page
    step = json.loads((out / "dpo-step-cpu-0.5b.json").read_text())
    assert [r["shape"] for r in step["shapes"]] == ["hh", "tldr", "uf"]
    for r in step["shapes"]:
        assert r["disagreement"] == ""
        assert r["afzal"]["executed_over_minimum"] >= 1.0
        assert r["plain"]["ratio"]["low"] > 0
    run = json.loads((out / "run-cpu.json").read_text())
    assert set(run["runs"].values()) == {"done"}
    if importlib.util.find_spec("trl") is None:
        assert "trl" in step["shapes"][0]["left_out"]["trl"]
        assert "trl" in run["not installed"]["TRL"]
    assert "| dpo-step-cpu-1b on uf: afzal against trl, updates per second | >= 2x |" in page
    assert json.loads((out / "growth-cpu.json").read_text())["groups"]["k4_in_pair_steps"] > 0
