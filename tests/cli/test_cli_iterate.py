"""``afzal iterate``: flags, files and run folders are equivalent; a run resumes from its folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afzal import config
from afzal.cli import main
from afzal.config import IterateConfig

FLAGS = ["iterate", "--model", "M", "--prompts", "P.jsonl", "--reward", "r.py:f"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[IterateConfig, bool, str]]:
    """The calls of the recipe, which is replaced."""
    calls: list[tuple[IterateConfig, bool, str]] = []

    def iterate(made: IterateConfig, *, resume: bool, command: str) -> Path:
        calls.append((made, resume, command))
        return Path(made.out)

    fake: Any = SimpleNamespace(iterate=iterate)
    monkeypatch.setitem(sys.modules, "afzal.iterate", fake)
    return calls


def test_flags_and_overrides_become_settings(asked, capsys):
    assert main([*FLAGS, "-n", "7", "--objective-arg", "beta=0.3", "--preset", "rso", "rso_accepted=4", "lr=1e-4"]) == 0
    made, resume, command = asked[0]
    assert (made.n, made.objective_arg, made.pairing, made.rso_accepted, made.lr) == (7, {"beta": 0.3}, "rso", 4, 1e-4)
    assert (resume, command.split()[:2]) == (False, ["afzal", "iterate"])
    assert capsys.readouterr().out == "report: runs/iterate-P/report.html\n"


def test_a_file_says_what_flags_say_and_flags_win(asked, tmp_path: Path):
    assert main(FLAGS) == 0
    (tmp_path / "rounds.yaml").write_text(config.dump(asked[0][0]))
    assert main(["iterate", str(tmp_path / "rounds.yaml"), "--rounds", "5", "seed=2"]) == 0
    assert asked[1][0] == asked[0][0].model_copy(update={"rounds": 5, "seed": 2})


def test_a_run_resumes_from_its_folder(asked, tmp_path: Path):
    assert main([*FLAGS, "--out", str(tmp_path)]) == 0
    (tmp_path / "run.yaml").write_text(config.dump(asked[0][0]))
    assert main(["iterate", str(tmp_path), "--resume"]) == 0
    assert asked[1][:2] == (asked[0][0], True)


def test_a_copied_run_of_rounds_resumes_in_the_copy(asked, tmp_path: Path):
    assert main([*FLAGS, "--out", str(tmp_path / "first")]) == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "run.yaml").write_text(config.dump(asked[0][0]))
    assert main(["iterate", str(copy), "--resume"]) == 0
    assert asked[1][0].out == str(copy)


def test_a_dry_run_shows_the_settings_and_does_nothing(asked, capsys):
    assert main([*FLAGS, "--preset", "spin", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "pairing: spin" in said
    assert "reference: previous" in said
    assert asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "'nowhere' is neither a file nor a run"),
        (["--roundz", "3"], "unknown option --roundz (did you mean --rounds?)"),
        (["--prompts", "P", "--model", "M"], "reward is missing"),
        (["--model", "M"], "'prompts' is missing"),
    ],
)
def test_errors_are_plain_messages(asked, capsys, words: list[str], said: str):
    assert main(["iterate", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_training_is_not_taken_for_rounds(asked, capsys, tmp_path: Path):
    (tmp_path / "run.yaml").write_text("method: dpo\nmodel: M\ndata: D\n")
    assert main(["iterate", str(tmp_path), "--resume"]) == 2
    assert "is a run of afzal train" in capsys.readouterr().err
