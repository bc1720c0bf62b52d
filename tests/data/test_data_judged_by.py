"""Judges' verdicts among the votes of rows are taken out, counted and named, and never people's."""

from __future__ import annotations

from typing import Any

from afzal.data import judges_of, naming, naming_all, without_verdicts
from afzal.records import Comparison, Item, Response, Vote


def item(*who: str | None, **extra: Any) -> Item:
    votes: tuple[Vote, ...] = tuple(Comparison(0, 1, "first", annotator=name) for name in who)
    return Item("i", "p", (Response("a"), Response("b")), votes, extra=extra)


def test_verdicts_are_taken_out_and_named():
    rows = [item("ann", "gpt", None, judged_by=["gpt", "rule:longest"]), item("bob", "gpt")]
    people = without_verdicts(rows)
    assert [[vote.annotator for vote in row.votes] for row in people.items] == [["ann", None], ["bob", "gpt"]]
    assert (people.verdicts, people.judges) == (1, ("gpt",))  # a judge without a verdict here is not named
    assert people.notes("rows.jsonl") == ["note: 1 verdict of gpt in rows.jsonl are not people's votes"]


def test_rows_of_people_stay_as_they_are():
    rows = [item("ann"), item("bob", judged_by=["gpt"])]
    people = without_verdicts(rows)
    assert people.items == rows
    assert (people.verdicts, people.judges, people.notes("x")) == (0, (), [])


def test_several_verdicts_are_counted_with_all_their_judges():
    people = without_verdicts([item("gpt", "a", "gpt", judged_by=["gpt", "a"])] * 500)
    assert people.in_words == "1,500 verdicts of a, gpt"


def test_names_are_added_to_those_of_the_row_and_of_joined_rows():
    first, second = item("gpt", judged_by=["gpt"], source="x"), item("llm", judged_by=["llm"])
    assert naming(first, ["a", "b"]) == {"judged_by": ["a", "b", "gpt"], "source": "x"}
    assert naming_all([first, second]) == {"judged_by": ["gpt", "llm"], "source": "x"}
    assert naming_all([item("ann", source="x"), second])["judged_by"] == ["llm"]
    assert naming_all([item("ann", source="x"), item("bob")]) == {"source": "x"}
    assert judges_of(item("ann", judged_by="gpt")) == []  # text of another tool, not a list of names
