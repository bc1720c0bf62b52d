"""An unwritable place is reported immediately, in the same words by every command."""

import json
import os

import pytest

import afzal
from afzal import api, runs
from afzal.data.writing import write_rows
from afzal.errors import AfzalError

ROWS = [
    {"prompt": f"{n}?", "response_a": "a", "response_b": "b", "annotator": f"p{n % 2}", "winner": "a"} for n in range(4)
]
ANSWERS = [{"prompt": f"{n}?", "completion": "a"} for n in range(4)]
PAIRS = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(4)]
COMMANDS = {
    "generate": lambda out: api.generate(model="no-model", prompts=["Hello"], out=out / "a.jsonl"),
    "score": lambda out: api.score(data=PAIRS, model="no-model", out=out / "a.jsonl"),
    "judge": lambda out: api.judge(ANSWERS, against=ANSWERS, judge="no-judge.yaml", out=out / "judged"),
    "aggregate": lambda out: api.aggregate(ROWS, out=out / "a.jsonl"),
    "convert": lambda out: api.convert(PAIRS, out=out / "a.jsonl", to="trl"),
    "fit": lambda out: afzal.fit("dpo", model="no-model", data=PAIRS, out=out / "run"),
    "export": lambda out: api.export("no-model", out=out / "merged"),
    "ask": lambda out: api.ask(PAIRS, by="random", out=out / "a.jsonl"),
}


def refused(command, out):
    with pytest.raises(AfzalError) as said:
        COMMANDS[command](out)
    return said.value


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_path_is_told_before_anything_is_read(tmp_path, command):
    (tmp_path / "file").write_text("")
    said = refused(command, tmp_path / "file")
    assert said.what.startswith(f"cannot write {tmp_path}/file")
    assert (said.why, said.remedy) == ("a part of the path is a file, not a folder", "choose another folder (--out)")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_the_right_to_write_is_told_before_anything_is_read(tmp_path, command):
    tmp_path.chmod(0o555)
    said = refused(command, tmp_path)
    tmp_path.chmod(0o755)
    assert said.what.startswith(f"cannot write {tmp_path}")
    assert said.why == "permission denied"
    assert said.remedy == "choose another folder (--out), one that you may write to"


@pytest.mark.parametrize("folder", ["", "new/below"])
def test_the_right_is_that_of_the_nearest_folder(tmp_path, monkeypatch, folder):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(AfzalError, match="permission denied"):
        runs.refuse_existing(tmp_path / folder / "a.jsonl")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_a_folder_that_can_be_written_is_not_refused_and_stays_as_it_is(tmp_path):
    runs.refuse_existing(tmp_path / "new" / "a.jsonl")
    runs.refuse_unwritable(tmp_path)
    runs.refuse_existing(None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_rows_makes_its_folder(tmp_path):
    runs.write_jsonl(tmp_path / "a" / "b.jsonl", [{"x": 1}])
    assert json.loads((tmp_path / "a" / "b.jsonl").read_text()) == {"x": 1}


def test_rows_and_records_are_refused_in_the_same_words(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    for write in (lambda path: runs.write_jsonl(path, []), lambda path: write_rows([], path)):
        with pytest.raises(AfzalError) as error:
            write(tmp_path / "file" / "a.jsonl")
        said.append((error.value.why, error.value.remedy))
    assert said[0] == said[1]
