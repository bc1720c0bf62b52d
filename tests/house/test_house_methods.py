"""One file per training method: nothing outside its file and the table says its name or asks which one it is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import afzal
from afzal import config
from afzal.objectives import REGISTRY

PACKAGE = Path(afzal.__file__).parent
RUNS_OF_ITS_OWN = {"lab/demo.py"}  # the demonstration trains by SFT and by DPO: it is a user of the methods
OTHER_WORDS = {"reward", "prefer"}  # the names of a setting, a field of files and a figure as well

TOY = '''"""Half of DPO: a method that only a test has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..method import Cost, Expression, Method
from ..training import BetaConfig


class HalfConfig(BetaConfig, frozen=True):
    """DPO with half its strength."""

    method: Literal["half"] = Field("half", description="Half of DPO.")
    share: float = Field(0.5, gt=0, description="Share of beta that is used.")


def objective(config: HalfConfig) -> Expression:
    """DPO, weaker."""
    return "dpo", {"beta": config.share * config.beta}


METHOD = Method(
    name="half",
    line="Half of what DPO does.",
    title="half of direct preference optimisation",
    full="half of direct preference optimisation (HALF)",
    settings=HalfConfig,
    objective=objective,
    cost=Cost(2, reference=True),
)
'''


def sources() -> dict[str, ast.Module]:
    """The files outside the room of settings, parsed."""
    paths = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("config", "objectives")]
    return {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def words(tree: ast.AST) -> set[str]:
    """Texts that stand in the code, its docstrings and messages of several words left out."""
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_no_other_file_names_a_method():
    names = set(config.METHODS) - OTHER_WORDS - set(REGISTRY)
    assert {"reinforce", "grpo"} <= set(config.METHODS)
    named = {path: sorted(words(tree) & names) for path, tree in sources().items() if path not in RUNS_OF_ITS_OWN}
    assert not {path: found for path, found in named.items() if found}


def test_no_room_asks_which_settings_it_was_given():
    asked = re.compile(r"isinstance\([^()]*\w+Config\b|\bconfig\.method (==|!=|in)\b|get\(\"method\"\) (==|!=|in)")
    paths = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "config"]
    found = {
        str(p.relative_to(PACKAGE)): m.group(0) for p in paths if (m := asked.search(p.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with one method more: one file, and one line of the table."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, root / "afzal", ignore=shutil.ignore_patterns("__pycache__"))
    methods = root / "afzal" / "config" / "methods"
    (methods / "half.py").write_text(TOY)
    table = (methods / "__init__.py").read_text()
    line = table.replace("        dpo.METHOD,\n", "        dpo.METHOD,\n        half.METHOD,\n")
    (methods / "__init__.py").write_text(line.replace("from . import dpo,", "from . import dpo, half,"))
    return root


def run(root: Path, *arguments: str) -> str:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HOME": str(root)}
    made = subprocess.run(
        [sys.executable, "-m", "afzal", *arguments], capture_output=True, text=True, cwd=root, env=env, timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout + made.stderr


def test_a_method_is_one_file_and_one_line(with_toy: Path):
    """It shows in the help, trains with its own objective, resumes, is planned, reported and has a card."""
    from helpers_runs import model_folder

    model_folder(with_toy / "model")
    rows = [f'{{"prompt": "a{k} ", "chosen": "bb{k}", "rejected": "c"}}' for k in range(12)]
    (with_toy / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    assert "Half of what DPO does." in run(with_toy, "train", "--help")
    assert "--share" in run(with_toy, "train", "half", "--help")
    data = ("--model", "model", "--data", "pairs.jsonl", "--out", "made", "--max-steps", "2", "--device", "cpu")
    run(with_toy, "train", "half", *data, "--share", "0.25", "--beta", "0.4", "--batch-size", "4")
    facts = (with_toy / "made" / "run.json").read_text()
    assert '"method": "half"' in facts
    assert '"beta": 0.1' in facts
    assert "nothing left to do" in run(with_toy, "train", "made", "--resume")
    assert "half of direct preference optimisation" in (with_toy / "made" / "report.html").read_text()
    assert "(HALF)" in (with_toy / "made" / "README.md").read_text()
    assert "half, fp32" in run(with_toy, "plan", "half", "--model", "model", "--hardware", "cpu", "--memory-gb", "8")
