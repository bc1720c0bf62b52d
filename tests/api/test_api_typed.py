"""The package is marked as typed: pyright checks a program that uses it strictly and reports a wrong use."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USAGE = ROOT / "tests" / "api" / "usage_typed.py"
WRONG = """
import afzal

afzal.fit("dpo", data=[], out="runs/dpo")
run = afzal.fit("dpo", model="my-model", data=[], out="runs/dpo")
count: int = run.status()
run.nothing()
"""


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the built wheel was unpacked, as after an installation."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-build-isolation"] if find_spec("hatchling") else []
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", *offline, "-w", str(folder), str(ROOT)]
    built = subprocess.run(words, capture_output=True, text=True, check=False)
    if built.returncode and not offline and "hatchling" in built.stderr:
        pytest.skip("hatchling is not installed, and cannot be fetched")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("afzal-*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def faults(folder: Path, program: str, package: Path = ROOT / "src") -> list[str]:
    """The rules that a program's own lines break under strict pyright.

    Args:
        package: the folder that holds ``afzal``.
    """
    pytest.importorskip("pyright")
    (folder / "usage.py").write_text(program, encoding="utf-8")
    settings = {"include": ["usage.py"], "extraPaths": [str(package)], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    words = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), done.stderr
    output = json.loads(done.stdout)
    assert output["summary"]["filesAnalyzed"] == 1
    return [f"{one.get('rule')}: {one['message']}" for one in output["generalDiagnostics"]]


@pytest.mark.slow
def test_the_wheel_says_that_it_is_typed(installed: Path, tmp_path: Path):
    """From the wheel alone: without ``py.typed``, or with a module missing, pyright would report faults."""
    assert (installed / "afzal" / "py.typed").is_file()
    assert faults(tmp_path, USAGE.read_text("utf-8"), installed) == []
    # the check covers these files, not another installed Afzal
    results = installed / "afzal" / "api" / "results.py"
    results.write_text(results.read_text("utf-8").replace("def curves(", "def curve("), encoding="utf-8")
    assert faults(tmp_path, USAGE.read_text("utf-8"), installed)


@pytest.mark.slow
def test_a_typed_program_has_no_fault(tmp_path: Path):
    assert faults(tmp_path, USAGE.read_text("utf-8")) == []


@pytest.mark.slow
def test_a_wrong_program_has_faults(tmp_path: Path):
    rules = {fault.partition(":")[0] for fault in faults(tmp_path, WRONG)}
    assert {"reportCallIssue", "reportAssignmentType", "reportAttributeAccessIssue"} <= rules
