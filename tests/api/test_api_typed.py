"""The package says that it is typed: a program that uses it is checked strictly, and a wrong use is found."""

from __future__ import annotations

import json
import subprocess
import sys
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


def faults(folder: Path, program: str) -> list[str]:
    """The rules that pyright, strict, finds broken in a program; of its own lines only."""
    pytest.importorskip("pyright")
    (folder / "usage.py").write_text(program, encoding="utf-8")
    settings = {"include": ["usage.py"], "extraPaths": [str(ROOT / "src")], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    words = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return [f"{one.get('rule')}: {one['message']}" for one in found["generalDiagnostics"]]


@pytest.mark.slow
def test_a_typed_program_has_no_fault(tmp_path: Path):
    assert faults(tmp_path, USAGE.read_text("utf-8")) == []


@pytest.mark.slow
def test_a_wrong_program_has(tmp_path: Path):
    rules = {fault.partition(":")[0] for fault in faults(tmp_path, WRONG)}
    assert {"reportCallIssue", "reportAssignmentType", "reportAttributeAccessIssue"} <= rules
