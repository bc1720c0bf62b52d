"""A signal while a model is loading ends every command with one line and the shell's exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import _CONTEXT, command_line, finished, model_folder, one_thread, pair_file, settings

from afzal import runs
from afzal.cli import interruption, main
from afzal.errors import Terminated

LOADERS = {
    "tokenizer": "transformers.AutoTokenizer.from_pretrained",
    "model": "afzal.recipes.train.load_model",
    "first measurement": "afzal.iterate.run.measure",
}


def _held(arguments: list[str], held: str, folder: str) -> None:
    """Run a command line that never gets past one function: ``folder/reached`` says that it is in it."""
    from importlib import import_module

    path, _, name = LOADERS[held].rpartition(".")
    module, _, owner = path.rpartition(".")
    place = getattr(import_module(module), owner) if owner[:1].isupper() else import_module(path)

    def hold(*_: object, **__: object) -> None:
        Path(folder, "reached").touch()
        while True:
            time.sleep(600)

    setattr(place, name, hold)
    # the tests themselves may run under nohup or in the background, where these are ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(f"{folder}/stderr", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    with one_thread():
        raise SystemExit(main(arguments))


def interrupted(arguments: list[str], held: str, folder: Path, number: int) -> tuple[int, list[str]]:
    """The exit code and the lines of a command that got a signal while it was held."""
    process: Any = _CONTEXT.Process(target=_held, args=(arguments, held, str(folder)), daemon=True)
    process.start()
    while process.is_alive() and not (folder / "reached").exists():
        time.sleep(0.01)
    assert process.is_alive(), (folder / "stderr").read_text()
    os.kill(process.pid, number)
    return finished(process), (folder / "stderr").read_text().splitlines()


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """A model, pairs, and one command line for each verb that loads a model."""
    model, data = f"{model_folder(tmp_path / 'model')}", f"{pair_file(tmp_path / 'pairs.jsonl')}"
    out, reward = f"{tmp_path}/out", f"{tmp_path}/reward.py:reward"
    (tmp_path / "reward.py").write_text("def reward(prompt, answer):\n    return 0.0\n")
    study = {
        "model": model,
        "methods": [{"name": "dpo", "train": "dpo"}],
        "data": data,
        "prompts": data,
        "rewards": {"r": reward},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study | {"out": out, "seeds": [0]}))
    return {
        "train": f"train dpo --model {model} --data {data} --out {out}",
        "iterate": f"iterate --model {model} --prompts {data} --reward {reward} --max-new-tokens 8 --out {out}",
        "generate": f"generate --model {model} --prompts {data} --out {out}",
        "judge": f"judge {model} --against {model} --prompts {data} --judge rule:longest --out {out}",
        "compare": f"compare {tmp_path}/study.yaml",
        "score": f"score --policy {model} --reference {model} --data {data} --out {out}",
        "chat": f"chat {model} --alone",
    }


@pytest.mark.parametrize(
    ("verb", "name", "code"),
    [
        *((verb, "SIGTERM", 143) for verb in ("train", "iterate", "generate", "judge", "compare", "score", "chat")),
        ("train", "SIGINT", 130),
        ("chat", "SIGINT", 130),
        ("generate", "SIGHUP", 129),
    ],
)
def test_a_signal_while_loading_ends_with_one_line(
    verb: str, name: str, code: int, made: dict[str, str], tmp_path: Path
):
    ended, lines = interrupted(made[verb].split(), "tokenizer", tmp_path, signal.Signals[name])
    assert ended == code
    said = [line for line in lines if not line.endswith((": loading", "prompts.jsonl", "pairs.jsonl"))]
    assert len(said) == 1, lines
    shown = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP (the terminal was closed)"}[name]
    assert said[0].startswith(f"interrupted by {shown}: ")
    assert said[0].endswith("; nothing was written; the same command starts it again")
    assert not (tmp_path / "out" / "run.json").exists()
    assert not (tmp_path / "out").is_file()


def test_a_run_that_was_stopped_while_its_model_loads_can_be_continued_or_repeated(tmp_path: Path):
    out = tmp_path / "out"
    line = command_line("dpo", settings(tmp_path, out))
    code, lines = interrupted(line, "model", tmp_path, signal.SIGTERM)
    assert code == 143
    assert lines[-1].endswith(f"; {out} holds what was written; continue it with: afzal train {out} --resume")
    facts = runs.open_run(out).facts()
    assert (facts["status"], facts["stop_reason"], facts["step"]) == ("stopped", "SIGTERM", 0)
    for again_line in (line, ["train", str(out), "--resume"]):
        (tmp_path / "reached").unlink(missing_ok=True)
        code, lines = interrupted(again_line, "model", tmp_path, signal.SIGINT)
        assert (code, (tmp_path / "reached").exists()) == (130, True), lines


def test_rounds_record_the_signal(made: dict[str, str], tmp_path: Path):
    code, lines = interrupted(made["iterate"].split(), "first measurement", tmp_path, signal.SIGTERM)
    out = tmp_path / "out"
    assert code == 143
    assert lines[-1].endswith(f"; {out} holds what was written; continue it with: afzal iterate {out} --resume")
    facts = runs.open_run(out).facts()
    assert (facts["status"], facts["stop_reason"]) == ("stopped", "SIGTERM")


def standing(verb: str, what: str, out: Path | str, change: Any = lambda: None) -> str:
    """The message of an interruption after ``change`` has been done to the output."""
    interruption._works.clear()
    interruption.announce(what, out)
    change()
    return interruption.interruption_line([verb], signal.SIGINT)


def test_the_line_says_what_is_on_disk(tmp_path: Path):
    out = tmp_path / "out"
    head, repeat = "interrupted by Ctrl-C: W; ", "; the same command starts it again"
    assert standing("generate", "W", "") == f"{head}nothing was written{repeat}"
    assert standing("score", "W", out) == f"{head}nothing was written{repeat}"
    assert standing("compare", "W", out) == f"{head}nothing was written{repeat}"
    replies = tmp_path / "out.replies.sqlite"
    replies.touch()
    assert standing("generate", "W", out) == (
        f"{head}the replies so far are kept in {replies}; the same command requests the others"
    )
    replies.unlink()
    assert standing("generate", "W", out, out.touch) == f"{head}{out} was written; nothing needs to be repeated"
    assert standing("score", "W", out) == f"{head}nothing was written{repeat}"  # the file was there before
    out.unlink()
    assert (
        standing("judge", "W", out, lambda: (out / "answers").mkdir(parents=True))
        == f"{head}nothing was written{repeat}"
    )
    assert standing("judge", "W", out, (out / "replies.sqlite").touch) == (
        f"{head}what is finished is kept in {out}; the same command continues it"
    )
    facts = out / "run.json"
    facts.write_text("{}")
    assert standing("train", "W", out) == f"{head}nothing was written{repeat}"  # the run is an older one
    facts.unlink()
    assert standing("train", "W", out, facts.touch) == (
        f"{head}{out} holds what was written; continue it with: afzal train {out} --resume"
    )
    interruption._works.clear()
    assert interruption.interruption_line(["check", "a.jsonl"], signal.SIGTERM) == "interrupted by SIGTERM: afzal check"


def test_a_wrapped_interruption_is_recognised():
    for stop in (KeyboardInterrupt(), Terminated("SIGTERM")):
        error = RuntimeError("could not import")
        error.__cause__ = ImportError("half")
        assert not interruption.is_interruption(error)
        error.__cause__.__context__ = stop
        assert interruption.is_interruption(error)
