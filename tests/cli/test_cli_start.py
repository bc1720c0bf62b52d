"""Wrong paths are told, and the first line is said, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
for name in ("torch", "transformers", "afzal.recipes"):
    sys.modules[name] = None  # importing it is an error
from afzal.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def run(tmp_path, *arguments):
    """Exit code and stderr of a command line in a process in which nothing heavy can be imported."""
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "model").mkdir(exist_ok=True)
    line = [sys.executable, "-c", SCRIPT, *arguments]
    found = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    return found.returncode, found.stderr


MODEL, DATA = ("--model", "model"), ("--data", "data.jsonl")
WRONG = [
    (
        ("train", "dpo", *MODEL, "--data", "dtaa.jsonl"),
        "no such file or folder: dtaa.jsonl\n  try: did you mean data.jsonl?",
    ),
    (("train", "dpo", *MODEL, *DATA, "--eval-data", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("train", "dpo", "--model", "./mdoel", *DATA), "model folder './mdoel' does not exist"),
    (("train", "dpo", *MODEL, *DATA, "--reference", "a/b/c"), "model folder 'a/b/c' does not exist"),
    (("train", "rloo", *MODEL, *DATA, "--reward", "r.py:f"), "there is no file 'r.py'"),
    (("train", "rloo", *MODEL, *DATA, "--reward", "/no/model"), "model folder '/no/model' does not exist"),
    (("train", "prefer", *MODEL, *DATA, "--objective", "dpo + 0.5*mine.py:f"), "there is no file 'mine.py'"),
    (("iterate", *MODEL, "--prompts", "x.jsonl", "--reward", "people"), "no such file or folder: x.jsonl"),
    (("score", *MODEL, "--data", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("generate", *MODEL, "--prompts", "x.jsonl"), "no such file or folder: x.jsonl"),
    (("export", "/no/run", "--out", "out"), "model folder '/no/run' does not exist"),
]


@pytest.mark.parametrize(("arguments", "said"), [pytest.param(a, s, id=" ".join(a)) for a, s in WRONG])
def test_a_wrong_path_is_told_before_heavy_imports(tmp_path, arguments, said):
    code, error = run(tmp_path, *arguments)
    assert code == 2
    assert said in error
    assert "loading" not in error


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("train", "dpo", *MODEL, *DATA, "--out", "R"), "dpo of model on data.jsonl, into R: loading"),
        (
            ("iterate", *MODEL, "--prompts", "data.jsonl", "--reward", "people", "--out", "R"),
            "rounds of model on data.jsonl",
        ),
        (("score", *MODEL, *DATA), "scores of data.jsonl by model: loading"),
        (("generate", *MODEL, "--prompt", "a"), "answers of model: loading"),
        (("export", "model", "--out", "out"), "export of model: loading"),
    ],
)
def test_the_first_line_comes_before_heavy_imports(tmp_path, arguments, line):
    code, error = run(tmp_path, *arguments)
    assert error.startswith(line)
    assert code == 70  # the import that is made impossible here
