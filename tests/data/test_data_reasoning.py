"""Thoughts in a field next to an answer stay with it, under any name, through reading, cleaning and writing."""

import json
from pathlib import Path

import pytest

from afzal import quality
from afzal.data import read
from afzal.data.native import to_row
from afzal.errors import AfzalError
from afzal.records import Message, turns_to_json


def _file(folder: Path, *rows: dict) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _pair(name: str, better: str, worse: str) -> dict:
    answers = [[{"role": "assistant", "content": "Yes.", name: thoughts}] for thoughts in (better, worse)]
    return {"prompt": [{"role": "user", "content": "Rain?"}], "chosen": answers[0], "rejected": answers[1]}


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_the_thoughts_of_an_answer_are_read(tmp_path: Path, name: str) -> None:
    (item,) = read(_file(tmp_path, _pair(name, "Clouds.", "A guess."))).items
    assert [r.turns for r in item.responses] == [
        (Message("assistant", "Yes.", "Clouds."),),
        (Message("assistant", "Yes.", "A guess."),),
    ]


def test_answers_that_differ_only_in_their_thoughts_are_two(tmp_path: Path) -> None:
    dataset = read(_file(tmp_path, _pair("reasoning_content", "Clouds.", "A guess.")))
    kept, dropped = quality.clean(dataset.items)
    assert (len(kept), dropped) == (1, [])
    same = read(_file(tmp_path, _pair("reasoning_content", "Clouds.", "Clouds. ")))
    assert quality.clean(same.items)[0] == []


def test_thoughts_are_written_where_they_were(tmp_path: Path) -> None:
    (item,) = read(_file(tmp_path, _pair("reasoning_content", "Clouds.", "A guess."))).items
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Clouds."}
    assert turns_to_json(item.responses[0].turns) == [said]
    path = _file(tmp_path, to_row(item))
    assert read(path).items[0].responses == item.responses
    assert turns_to_json((Message("user", "Hi"),)) == [{"role": "user", "content": "Hi"}]


def test_thoughts_that_are_no_text_are_refused(tmp_path: Path) -> None:
    row = _pair("reasoning_content", "Clouds.", "A guess.")
    row["chosen"][0]["reasoning_content"] = ["Clouds."]
    with pytest.raises(AfzalError, match="reasoning_content is a list, not text"):
        read(_file(tmp_path, row))
