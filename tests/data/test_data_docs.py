"""docs/formats.md matches the code."""

import re
from pathlib import Path

import pytest

from afzal.data import FORMATS, formats, read

DOC = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^### (\w+)\n\n```json\n(.*?)\n```", DOC, re.M | re.S)
PYTHON = re.findall(r"^```python\n(.*?)^```", DOC, re.M | re.S)


@pytest.mark.parametrize(("name", "row"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_example_is_detected_as_what_it_is_shown_for(tmp_path, name, row):
    path = tmp_path / "a.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    dataset = read(path)
    assert dataset.format == name
    assert dataset.items


def test_every_format_has_its_line_and_its_example():
    assert [name for name, _ in EXAMPLES] == list(dict.fromkeys(e.name for e in FORMATS if e.parse))
    for entry in FORMATS:
        (line,) = [text for text in DOC.splitlines() if re.match(rf"\| \[?{entry.name}\b", text)]
        for field in entry.requires if entry.name != "indexed" else ("prompt", "responses"):
            assert f"`{field.split('|')[0]}`" in line


def test_the_number_of_rows_that_decide_is_the_documented_one():
    from afzal.data.reading import SAMPLE_ROWS

    assert f"The first {SAMPLE_ROWS} rows decide" in DOC


def test_the_code_shown_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prefs.jsonl").write_text('{"prompt": "Q", "chosen": " a", "rejected": " b"}\n')
    assert len(PYTHON) == 2
    scope = {}
    for code in PYTHON:
        exec(code, scope)
    assert scope["dataset"].format == "standard"
    monkeypatch.setattr("afzal.data.detect.FORMATS", (*formats.FORMATS, scope["entry"]))
    Path("mine.jsonl").write_text('{"ask": "Sky?", "liked": "Blue.", "disliked": "Green."}\n')
    mine = read("mine.jsonl")
    assert mine.format == "my_format"
    assert mine.items[0].responses[0].turns[0].content == "Blue."
