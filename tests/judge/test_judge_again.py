"""Rows that a judge has judged before: its verdicts are votes, but not people's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afzal import api, data
from afzal.records import Comparison, Item, Response


def pairs(folder: Path, people: tuple[str, ...]) -> str:
    """Four pairs of which the first answer is longer; each person prefers it in all but the last."""
    items = []
    for k in range(4):
        votes = tuple(Comparison(0, 1, "second" if k == 3 else "first", annotator=name) for name in people)
        items.append(Item(str(k), f"question {k}", (Response("a long answer"), Response("short")), votes))
    data.write(items, folder / "pairs.jsonl", "afzal")
    return str(folder / "pairs.jsonl")


def judge(rows: str, judge: str, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The judge's summary and the notes."""
    notes: list[str] = []
    result = api.judge(rows, judge=judge, out=str(out), resamples=20, say=notes.append)
    return result.body["judges"][0], notes


@pytest.mark.parametrize("people", [(), ("ann",), ("ann", "bob", "cid")])
def test_a_second_judge_is_compared_with_the_same_people(people, tmp_path):
    source = pairs(tmp_path, people)
    alone, quiet = judge(source, "rule:shortest", tmp_path / "alone")
    judge(source, "rule:longest", tmp_path / "first")
    second, notes = judge(str(tmp_path / "first" / "rows.jsonl"), "rule:shortest", tmp_path / "second")
    assert ("people" in alone) == bool(people)
    assert second == alone
    assert not any("verdicts" in note for note in quiet)
    assert "note: the verdicts of rule:longest in the rows are not people's votes" in notes


def test_rows_name_every_judge_that_gave_verdicts(tmp_path):
    source = pairs(tmp_path, ("ann",))
    judge(source, "rule:longest", tmp_path / "first")
    judge(str(tmp_path / "first" / "rows.jsonl"), "rule:shortest", tmp_path / "second")
    for item in data.read(str(tmp_path / "second" / "rows.jsonl")).items:
        assert item.extra["judged_by"] == ["rule:longest", "rule:shortest"]
        assert [vote.annotator for vote in item.votes] == ["ann", "rule:longest", "rule:shortest"]
