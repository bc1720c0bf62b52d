"""No verb passes terminal control sequences from data, file names, run folders or model output to the terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from afzal.cli import VERBS, main
from afzal.terminal import one_line, visible

CASES = Path(__file__).parents[3] / "shared" / "cases"
SOURCE = Path(__file__).resolve().parents[2] / "src"
TITLE = "\x1b]0;PWNED\x07"
EVIL = f"{TITLE}\x1b[2J\x1b[31mRED\x1b[8mhidden\x9b1m\u202eback\x08\r\x7f"
NAME = EVIL.replace("/", "") + "\nerror: forged"  # a valid file name
ROWS = [
    {"id": f"{EVIL}{k}", "prompt": f"q{k % 3}{EVIL}", "chosen": f" same{EVIL}", "rejected": f" same{EVIL}", EVIL: EVIL}
    for k in range(20)
]
# what rich writes to a terminal: colours, cursor, cleared lines; never a title, a cleared screen or hidden text
OURS = re.compile(r"\x1b\[(0|[0-9;]*m|[0-9]*[A-D]|2K|\?25[lh])")


def data(folder, name="a.jsonl", rows=ROWS):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def clean(text):
    """Whether a text contains no control characters but line feeds and tabs."""
    return visible(text) == text


def run(capsys, *args):
    main(list(map(str, args)))
    said = capsys.readouterr()
    assert clean(said.out), repr(said.out)
    assert clean(said.err), repr(said.err)
    return said.out + said.err


def test_control_characters_are_escaped_as_in_json():
    assert visible("\x1b[2J\x9b\u202e\ud800\U000e0041\r") == "\\u001b[2J\\u009b\\u202e\\ud800\\udb40\\udc41\\u000d"
    assert visible("a\tb\nZoë 天空 \U0001f469\u200d\U0001f680 \u0645\u06cc\u200c\u062e") == (
        "a\tb\nZoë 天空 \U0001f469\u200d\U0001f680 \u0645\u06cc\u200c\u062e"
    )
    assert one_line("a\tb\nc") == "a\\u0009b\\u000ac"
    assert json.loads(visible(json.dumps(EVIL, ensure_ascii=False))) == EVIL


@pytest.mark.parametrize("verb", VERBS)
def test_a_hostile_argument_is_shown_by_every_verb(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    if verb == "demo":
        monkeypatch.setattr("afzal.lab.demo.run", lambda *args, **kwargs: None, raising=False)
        args = ["demo", f"--{EVIL}"]
    else:
        args = [verb, NAME]
    said = run(capsys, *args)
    assert "\nerror: forged" not in said
    run(capsys, verb, f"--{NAME}", "x")


@pytest.mark.parametrize("extra", [[], ["--json"], ["--skip-bad"]])
def test_check_of_hostile_data(tmp_path, capsys, extra):
    said = run(capsys, "check", data(tmp_path), *extra, "--format", "standard")
    assert "\\u001b" in said
    run(capsys, "check", data(tmp_path), *extra)  # refused, with the names of the fields
    run(capsys, "check", data(tmp_path, rows=[{"prompt": EVIL, EVIL: EVIL}] * 3), *extra)
    (tmp_path / "b.jsonl").write_text(f'{{"{EVIL}')
    run(capsys, "check", tmp_path / "b.jsonl", *extra)


@pytest.mark.parametrize("name", [NAME + ".jsonl", "a\udcff.jsonl"], ids=["escapes", "no utf-8"])
def test_check_of_a_file_with_a_hostile_name(tmp_path, capsys, name):
    rows = [{"prompt": f"q{k}", "chosen": " a", "rejected": " b"} for k in range(3)]
    said = run(capsys, "check", data(tmp_path, name, rows))
    assert "rows: 3" in said
    assert "\nerror: forged" not in said
    run(capsys, "check", data(tmp_path, name, [{"chosen": 1}]))
    run(capsys, "convert", data(tmp_path, name, rows), tmp_path / f"out{name}", "--to", "trl")
    run(capsys, "convert", data(tmp_path, name, rows), tmp_path / f"out{name}", "--to", "trl")


def test_runs_and_report_of_hostile_folders(tmp_path, capsys):
    folder = tmp_path / NAME
    folder.mkdir()
    facts = {"afzal": "0", "method": EVIL, "status": EVIL, "started": EVIL, "steps": 3, "step": 1, "name": EVIL}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "run.yaml").write_text("method: dpo\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "loss": 0.5, EVIL: 1}) + "\n")
    said = run(capsys, "runs", tmp_path)
    assert "RED" in said
    assert "\nerror: forged" not in said
    run(capsys, "runs", tmp_path, "--json")
    run(capsys, "report", folder)


def test_settings_with_hostile_names_and_values(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"method": "dpo", EVIL: EVIL, "model": EVIL, "data": EVIL}))
    run(capsys, "train", path)
    path.write_text(json.dumps({"method": EVIL}))
    run(capsys, "train", path)
    run(capsys, "train", "dpo", "--model", EVIL, "--data", data(tmp_path), "--out", tmp_path / NAME)
    run(capsys, "generate", "--model", tmp_path / NAME, "--prompts", data(tmp_path), "--out", tmp_path / "o.jsonl")
    run(capsys, "plan", "--model", EVIL, "--data", data(tmp_path))


def in_a_terminal(*args, env=None):
    """The bytes that a command writes to a pseudo-terminal."""
    parent, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "afzal", *map(str, args)], stdout=child, stderr=child, env=env):
        os.close(child)
        said = b""
        while True:
            try:
                piece = os.read(parent, 65536)
            except OSError:
                break
            if not piece:
                break
            said += piece
    os.close(parent)
    return said.decode("utf-8", "replace").replace("\r\n", "\n")


def test_on_a_terminal_only_our_own_colours_pass(tmp_path):
    env = os.environ | {"PYTHONPATH": str(SOURCE), "TERM": "xterm-256color", "COLUMNS": "200"}
    path = data(tmp_path, NAME + ".jsonl")
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "run.json").write_text(json.dumps({"afzal": EVIL, "method": EVIL, "status": EVIL}))
    for args in (["check", path, "--format", "standard"], ["check", path], ["runs", tmp_path], ["convert", path, path]):
        said = in_a_terminal(*args, env=env)
        assert "\x1b" in said, "nothing of ours is coloured: this is no terminal"
        assert clean(OURS.sub("", said)), repr(said)
        assert "\x1b[31mRED" not in said
        assert "\x1b[8m" not in said


def test_a_traceback_is_visible_too(tmp_path):
    command = [sys.executable, "-m", "afzal", "check", str(tmp_path / EVIL), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert "Traceback" in done.stderr
    assert clean(done.stderr)


def test_every_console_of_the_source_is_the_visible_one():
    for path in (SOURCE / "afzal").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        made = re.findall(r"(?<![\w.])Console\(", text)
        assert made == [] or path.name == "console.py", f"{path}: use afzal.terminal.console.VisibleConsole"


@pytest.mark.shared
def test_the_shared_escapes_are_shown(capsys):
    path = CASES / "terminal_escapes.jsonl"
    if not path.exists():
        pytest.skip("the shared cases are not here")
    assert "\\u001b]0;PWNED-TITLE\\u0007" in run(capsys, "check", path)


def test_training_generating_and_reporting_with_hostile_names_and_texts(tmp_path, capsys):
    from helpers_runs import model_folder

    model = model_folder(tmp_path / "model\x1b[2Jm")
    rows = [{"id": EVIL, "prompt": f"Once {k}\x1b[2J", "chosen": " a dog", "rejected": " a cat"} for k in range(8)]
    path, out = data(tmp_path, NAME + ".jsonl", rows), tmp_path / f"run{NAME}"
    capsys.readouterr()
    fast = ["--max-steps", 1, "--batch-size", 4, "--max-tokens", 64, "--lr", "1e-4", "--sample-prompts", 1]
    said = run(capsys, "train", "dpo", "--model", model, "--data", path, "--out", out, *fast, "--sample-tokens", 4)
    assert (out / "run.json").is_file()
    assert "\\u001b" in said
    run(capsys, "report", out)
    run(capsys, "runs", tmp_path)
    run(capsys, "generate", "--model", model, "--prompt", EVIL, "--max-new-tokens", 4)
    run(capsys, "generate", "--model", out, "--prompts", path, "--max-new-tokens", 4)
    run(capsys, "check", path, "--model", model)
