"""Wrong paths are reported, and the first line is printed, before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from afzal import config, runs
from afzal.cli import startup
from afzal.errors import AfzalError

SCRIPT = """
import json, sys
for name in ("torch", "transformers", "afzal.recipes"):
    sys.modules[name] = None  # importing it is an error
from afzal.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    print(f"\\f{code}\\f", end="", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def said_by(tmp_path_factory):
    """Exit code and stderr of every command line below, in one process in which nothing heavy can be imported."""
    place, lines = tmp_path_factory.mktemp("start"), [arguments for arguments, _ in (*WRONG, *RIGHT)]
    (place / "data.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (place / "model").mkdir()
    line = [sys.executable, "-c", SCRIPT, json.dumps(lines)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=place, check=True)
    parts = done.stderr.split("\f")
    return {arguments: (int(parts[2 * k + 1]), parts[2 * k]) for k, arguments in enumerate(lines)}


MODEL, DATA = ("--model", "model"), ("--data", "data.jsonl")
WRONG = [
    (
        ("train", "dpo", *MODEL, "--data", "dtaa.jsonl"),
        "no such file or folder: dtaa.jsonl\n  try: did you mean data.jsonl?",
    ),
    (("train", "dpo", *MODEL, *DATA, "--eval-data", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("train", "dpo", "--model", "./mdoel", *DATA), "model folder './mdoel' does not exist"),
    (
        ("train", "dpo", *MODEL, *DATA, "--reference", "a/b/c"),
        "model folder 'a/b/c' does not exist\n  try: check the path; a hub id looks like org/name",
    ),
    (("train", "rloo", *MODEL, *DATA, "--reward", "r.py:f"), "there is no file 'r.py'"),
    (("train", "rloo", *MODEL, *DATA, "--reward", "/no/model"), "model folder '/no/model' does not exist"),
    (("train", "prefer", *MODEL, *DATA, "--objective", "dpo + 0.5*mine.py:f"), "there is no file 'mine.py'"),
    (("iterate", *MODEL, "--prompts", "x.jsonl", "--reward", "people"), "no such file or folder: x.jsonl"),
    (("score", *MODEL, "--data", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("generate", *MODEL, "--prompts", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("export", "/no/run", "--out", "out"), "model folder '/no/run' does not exist"),
]
RIGHT = [
    (("train", "dpo", *MODEL, *DATA, "--out", "R"), "dpo of model on data.jsonl, into R: loading"),
    (
        ("iterate", *MODEL, "--prompts", "data.jsonl", "--reward", "people", "--out", "R"),
        "rounds of model on data.jsonl",
    ),
    (("score", *MODEL, *DATA), "scores of data.jsonl by model: loading"),
    (("generate", *MODEL, "--prompt", "a"), "answers of model: loading"),
    (("export", "model", "--out", "out"), "export of model: loading"),
]


@pytest.mark.parametrize(("arguments", "said"), [pytest.param(a, s, id=" ".join(a)) for a, s in WRONG])
def test_a_wrong_path_is_reported_before_heavy_imports(said_by, arguments, said):
    code, error = said_by[arguments]
    assert code == 2
    assert said in error
    assert "loading" not in error


@pytest.mark.parametrize(("arguments", "line"), RIGHT)
def test_the_first_line_comes_before_heavy_imports(said_by, arguments, line):
    code, error = said_by[arguments]
    assert error.startswith(line)
    assert code == 70  # the import that is made impossible here


@pytest.mark.parametrize("key", ["data", "model"])
def test_a_moved_run_says_where_it_looked_and_where_it_was_started(tmp_path, monkeypatch, key):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    (work / "model").mkdir(parents=True)
    elsewhere.mkdir()
    (work / "data.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    named = {"data": "data.jsonl", "model": "./model"}
    whole = {other: str(work / value) for other, value in named.items() if other != key}
    settings = config.make("dpo", **named | whole, out="run")
    monkeypatch.chdir(work)
    with runs.create("run", {}):
        pass
    startup.refuse_missing(settings)
    (work / "run").rename(elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(AfzalError) as caught:
        startup.refuse_missing(settings)
    assert named[key] in caught.value.what
    assert caught.value.why == f"{key} of run is a relative path, and was looked for in {elsewhere}"
    remedy = f"repeat the command in {work}, where the run was started; or add {key}=PATH"
    assert caught.value.remedy.startswith(remedy)
    (elsewhere / "run" / "run.json").write_text('{"afzal": "0"}')  # of a version that did not record the folder
    with pytest.raises(AfzalError, match="in the folder where the run was started"):
        startup.refuse_missing(settings)
    monkeypatch.chdir(work)
    startup.refuse_missing(settings)
