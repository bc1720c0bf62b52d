"""Adding a method, a loss, a format, a verb or a finding, as CONTRIBUTING says: one file or entry, and one line.

And the reason: nothing outside a method's file and the table mentions its name or checks which method it is.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers_source import parsed

import afzal
from afzal import config
from afzal.objectives import REGISTRY

PACKAGE = Path(afzal.__file__).parent
RUNS_OF_ITS_OWN = {"lab/demo.py"}  # the demonstration trains by SFT and by DPO: it is a user of the methods
OTHER_WORDS = {"reward", "prefer", "meta"}  # also names of a setting, a field of files, a figure and a device

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


@cache
def sources() -> dict[str, ast.Module]:
    """The parsed files outside the room ``config``."""
    paths = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("config", "objectives")]
    return {p.relative_to(PACKAGE).as_posix(): parsed(p.read_text(encoding="utf-8")) for p in paths}


def words(tree: ast.AST) -> set[str]:
    """String constants in the code."""
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_no_other_file_names_a_method():
    names = set(config.METHODS) - OTHER_WORDS - set(REGISTRY)
    assert {"reinforce", "grpo"} <= set(config.METHODS)
    named = {path: sorted(words(tree) & names) for path, tree in sources().items() if path not in RUNS_OF_ITS_OWN}
    assert not {path: hits for path, hits in named.items() if hits}


def test_no_room_asks_which_settings_it_was_given():
    asked = re.compile(r"isinstance\([^()]*\w+Config\b|\bconfig\.method (==|!=|in)\b|get\(\"method\"\) (==|!=|in)")
    paths = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "config"]
    uses = {
        str(p.relative_to(PACKAGE)): m.group(0) for p in paths if (m := asked.search(p.read_text(encoding="utf-8")))
    }
    assert not uses


VERB = '''"""``afzal hello``."""

from __future__ import annotations

import typer


def command() -> None:
    """Say hello."""
    typer.echo("hello")
'''
FINDING = '''

class Shouts(_Counting):
    """Items whose prompt is in capital letters."""

    def add(self, batch: Sequence[ItemFacts]) -> None:
        for facts in batch:
            if facts.prompt_text.isupper():
                self.hit(facts.item)

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        message = f"{self.count} of {table.items} prompts shout"
        severity = "minor" if self.count else "ok"
        return finding("shouts", severity, self.count, table.items, message, "ask quietly", self.ids)
'''
FORMAT = """    Format(
        "riddle",
        ("riddle", "solution"),
        lambda row: Item("", row["riddle"], (Response(row["solution"]),)),
        {"prompt": "riddle", "answer": "solution"},
        family="plain",
    ),
)
"""
LOSS = '''"""A loss that only a test has."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .inputs import Pairs, Scored
from .margins import log_ratios, over_labels
from .registry import objective


@objective("squared_hinge", unit="pair", needs_reference=True, at_reference=1.0, shift_invariant=True,
           formula="max(0, 1 - beta h)^2", paper="a test")
def squared_hinge(policy: Scored, reference: Scored, pairs: Pairs, *, beta: float = 0.05) -> tuple[Tensor, Tensor]:
    """Squared hinge on the implicit-reward margin."""
    rho = log_ratios(policy, reference)
    return over_labels(lambda a, b: F.relu(1 - beta * (rho[a] - rho[b])) ** 2, pairs), beta * rho.detach()
'''


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with an added method, loss, format, verb and finding."""
    root = tmp_path_factory.mktemp("house")
    package = root / "afzal"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "config" / "methods" / "half.py").write_text(TOY)
    changed(
        package / "config" / "methods" / "__init__.py",
        "        dpo.METHOD,\n",
        "        dpo.METHOD,\n        half.METHOD,\n",
    )
    changed(package / "config" / "methods" / "__init__.py", "from . import dpo,", "from . import dpo, half,")
    (package / "objectives" / "squared_hinge.py").write_text(LOSS)
    changed(
        package / "objectives" / "__init__.py",
        "from . import shapes\n",
        "from . import shapes\nfrom . import squared_hinge\n",
    )
    (package / "cli" / "hello.py").write_text(VERB)
    changed(package / "cli" / "__init__.py", "VERBS = {\n", 'VERBS = {\n    "hello": "Say hello.",\n')
    single = package / "data" / "formats_single.py"
    text = single.read_text()
    single.write_text(
        text.rstrip().removesuffix(")") + FORMAT + "\nfrom afzal.records import Item, Response  # noqa: E402\n"
    )
    checks = package / "quality" / "checks.py"
    changed(checks, "\n\nclass OverLong(_Counting):", FINDING + "\n\nclass OverLong(_Counting):")
    changed(checks, "        OverLong(),\n", "        OverLong(),\n        Shouts(),\n")
    changed(
        package / "quality" / "thresholds.py",
        "THRESHOLDS = {\n",
        'THRESHOLDS = {\n    "shouts": "minor from one on",\n',
    )
    return root


MAIN = """
import json, sys
from afzal.cli import main
for arguments in json.loads(sys.argv[1]):
    print("\\f", flush=True)
    assert main(arguments) == 0, arguments
"""


def run(root: Path, *lines: tuple[str, ...]) -> list[str]:
    """The outputs of command lines run in sequence in one process that imports the copy."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HOME": str(root)}
    command = [sys.executable, "-c", MAIN, json.dumps(lines)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    made = subprocess.run(command, **pipes, text=True, cwd=root, env=env, timeout=300)
    assert made.returncode == 0, made.stdout
    return made.stdout.split("\f\n")[1:]


def test_a_method_is_one_file_and_one_line(with_toy: Path):
    """It appears in the help, trains with its own objective, resumes, is planned and reported, and has a card."""
    from helpers_runs import model_folder

    model_folder(with_toy / "model")
    rows = [f'{{"prompt": "a{k} ", "chosen": "bb{k}", "rejected": "c"}}' for k in range(12)]
    (with_toy / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    data = ("--model", "model", "--data", "pairs.jsonl", "--out", "made", "--max-steps", "2", "--device", "cpu")
    methods, flags, _, resumed, planned = run(
        with_toy,
        ("train", "--help"),
        ("train", "half", "--help"),
        ("train", "half", *data, "--share", "0.25", "--beta", "0.4", "--batch-size", "4"),
        ("train", "made", "--resume"),
        ("plan", "half", "--model", "model", "--hardware", "cpu", "--memory-gb", "8"),
    )
    assert "Half of what DPO does." in methods
    assert "--share" in flags
    facts = (with_toy / "made" / "run.json").read_text()
    assert '"method": "half"' in facts
    assert '"beta": 0.1' in facts
    assert "nothing left to do" in resumed
    assert "half of direct preference optimisation" in (with_toy / "made" / "report.html").read_text()
    assert "(HALF)" in (with_toy / "made" / "README.md").read_text()
    assert "half, fp32" in planned


def test_a_verb_is_one_file_and_one_line(with_toy: Path):
    listed, said = run(with_toy, ("--help",), ("hello",))
    assert "Say hello." in listed
    assert said == "hello\n"


def test_a_format_is_one_entry_and_a_finding_one_class_and_one_line(with_toy: Path):
    rows = ['{"riddle": "WHAT HAS KEYS?", "solution": "a piano"}', '{"riddle": "what runs?", "solution": "a river"}']
    (with_toy / "riddles.jsonl").write_text("\n".join(rows) + "\n")
    (said,) = run(with_toy, ("check", "riddles.jsonl"))
    assert "riddle" in said
    assert "1 of 2 prompts shout" in said
    assert "ask quietly" in said


def test_a_loss_is_one_function_and_one_line(with_toy: Path):
    (said,) = run(with_toy, ("objectives",))
    assert "max(0, 1 - beta h)^2" in said
