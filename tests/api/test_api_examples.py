"""The examples in the docstrings of the public functions run, and every command has its function."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_runs import model_folder, pair_file

import afzal
from afzal import api, config
from afzal.cli import VERBS
from benchmarks import guide


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the examples: ``my-model``, ``prefs.jsonl``, ``rewards.py``, ``principles.yaml`` and two runs."""
    place = tmp_path_factory.mktemp("examples")
    model_folder(place / "my-model")
    pair_file(place / "prefs.jsonl", 40)
    (place / "rewards.py").write_text("def short(prompt, answer):\n    return -float(len(answer))\n")
    (place / "principles.yaml").write_text("principles:\n  - {id: kind, text: The answer is kind.}\n")
    (place / "theirs.yaml").write_text("model_name_or_path: my-model\ndataset_name: prefs.jsonl\nbeta: 0.2\n")
    about = {
        "model": str(place / "my-model"),
        "data": str(place / "prefs.jsonl"),
        "batch_size": 8,
        "max_steps": 2,
        "lr": 1e-2,
    }
    about |= {"sample_prompts": 0}
    afzal.fit("dpo", **about, out=str(place / "runs" / "dpo"))
    afzal.fit("dpo", **about, out=str(place / "runs" / "lora"), lora_rank=2)
    return place


_ROUTINES = {name for name in api.__all__ if inspect.isroutine(getattr(api, name))}
FUNCTIONS = ["Run", *sorted(_ROUTINES - {"train"})]  # train is fit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    fn = getattr(api, name)
    tests = doctest.DocTestFinder(recurse=False).find(fn, name, globs={"afzal": afzal}, module=False)
    examples = [example for test in tests for example in test.examples]
    assert examples, f"afzal.api.{name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)


def test_the_lines_of_the_page_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(workplace)
    page = Path(__file__).resolve().parents[2] / "docs" / "python.md"
    (lines,) = (block.text for block in guide.blocks(page.read_text(encoding="utf-8")) if block.is_run)
    exec(compile(lines, str(page), "exec"), {})
    said = capsys.readouterr().out
    assert "finished" in said
    assert "by rule:longest" in said.splitlines()[-1]


def test_every_command_has_its_function():
    # import is a word of Python
    there = {"import" if name == "import_config" else name for name in api.__all__ if callable(getattr(api, name))}
    assert set(VERBS) - there == {"chat"}  # a conversation at the terminal
    assert afzal.fit is api.fit is api.train
    assert {"fit", "api"} <= set(dir(afzal))  # for tab completion and help


@pytest.mark.parametrize("name", "annotate ask board export fit generate iterate plan revise score".split())  # noqa: SIM905
def test_settings_that_a_docstring_names_are_settings(name: str):
    kinds = config.CONFIGS.values() if name == "fit" else [getattr(config, f"{name.capitalize()}Config")]
    said = (inspect.getdoc(getattr(api, name)) or "").partition("on the command line: ")[2].partition("\n\n")[0]
    named = set(re.findall(r"``(\w+)``", said))
    assert named
    assert named <= {key for kind in kinds for key in kind.model_fields}


def test_every_public_function_says_what_it_takes_and_raises():
    for name in FUNCTIONS:
        doc = inspect.getdoc(getattr(api, name)) or ""
        assert doc.partition("\n")[0].strip(), name
        assert "Example:" in doc, name


def test_importing_the_functions_is_light():
    heavy = ("torch", "transformers", "datasets", "pandas", "numpy", "scipy", "pydantic", "afzal.config")
    code = f"import sys, json, afzal, afzal.api; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_an_unknown_name_points_to_the_functions():
    with pytest.raises(AttributeError, match=r"the commands are functions of afzal\.api"):
        _ = afzal.leaderboard  # pyright: ignore[reportAttributeAccessIssue]
