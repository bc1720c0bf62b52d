"""Rows that a judge has judged before: its verdicts are votes, but not people's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afzal import api, data
from afzal.errors import AfzalError
from afzal.quality.ask import pool
from afzal.records import Comparison, Item, Response
from afzal.web.folder import AnnotationJob
from afzal.web.folder import read_items as web_items


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
    assert "note: 4 verdicts of rule:longest in the rows are not people's votes" in notes


def test_rows_name_every_judge_that_gave_verdicts(tmp_path):
    source = pairs(tmp_path, ("ann",))
    judge(source, "rule:longest", tmp_path / "first")
    judge(str(tmp_path / "first" / "rows.jsonl"), "rule:shortest", tmp_path / "second")
    for item in data.read(str(tmp_path / "second" / "rows.jsonl")).items:
        assert item.extra["judged_by"] == ["rule:longest", "rule:shortest"]
        assert [vote.annotator for vote in item.votes] == ["ann", "rule:longest", "rule:shortest"]


def judged_rows(folder: Path, people: tuple[str, ...], judges: tuple[str, ...] = ("rule:longest",)) -> str:
    """``rows.jsonl`` of these judges on :func:`pairs`, one after the other."""
    source = pairs(folder, people)
    for k, name in enumerate(judges):
        judge(source, name, folder / f"judge{k}")
        source = str(folder / f"judge{k}" / "rows.jsonl")
    return source


def test_verdicts_in_a_file_given_as_peoples_votes_are_left_out_and_counted(tmp_path):
    """Ann prefers the longer answer in three of four pairs. So rule:longest agrees with her on 3 of 4; with its own
    four verdicts counted as a person's, it would be 7 of 8."""
    rows, notes = judged_rows(tmp_path, ("ann",)), []
    result = api.judge(
        str(tmp_path / "pairs.jsonl"),
        judge="rule:longest",
        people=rows,
        out=str(tmp_path / "out"),
        resamples=20,
        say=notes.append,
    )
    assert result.body["judges"][0]["people"]["agreement"]["value"] == 0.75
    assert "note: 4 verdicts of rule:longest in rows.jsonl are not people's votes" in notes


def test_several_models_are_compared_with_people_only(tmp_path):
    rows, notes = judged_rows(tmp_path, ("ann",)), []
    for name, answer in (("long", "a long answer"), ("short", "short")):
        lines = [json.dumps({"prompt": f"question {k}", "completion": answer}) + "\n" for k in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    how = {"judge": "rule:longest", "people": rows, "resamples": 20, "out": str(tmp_path / "out")}
    result = api.judge(str(tmp_path / "long.jsonl"), against=str(tmp_path / "short.jsonl"), say=notes.append, **how)
    by = {line["by"]: line["value"] for line in result.body["table"]["lines"]}
    assert by == {"rule:longest": 1.0, "people": 0.75}
    assert any("4 verdicts of rule:longest" in note for note in notes)


def test_people_as_a_judge_are_people_only(tmp_path):
    """In the last pair ann names the second answer and the rule the first: counted together, they would tie."""
    rows = judged_rows(tmp_path, ("ann",))
    summary, notes = judge(rows, f"people:{rows}", tmp_path / "out")
    assert summary["outcomes"] == {"first": 3, "second": 1, "tie": 0, "none": 0}
    assert any("4 verdicts of rule:longest in rows.jsonl" in note for note in notes)


def test_a_file_with_nothing_but_verdicts_is_no_file_of_peoples_votes(tmp_path):
    rows = judged_rows(tmp_path, ())
    with pytest.raises(AfzalError, match="no votes of people on these pairs") as refused:
        api.judge(rows, judge="rule:shortest", people=rows, out=str(tmp_path / "out"), resamples=20)
    assert refused.value.why == "it holds 4 verdicts of rule:longest"
    assert "--judge" in refused.value.remedy


def test_aggregate_counts_judges_like_annotators_and_says_so(tmp_path):
    """Ann and the rule agree on 3 of the 4 pairs."""
    result = api.aggregate(judged_rows(tmp_path, ("ann",)), resamples=5)
    assert result["figures"][0]["value"] == 0.75
    assert "4 verdicts of rule:longest are among the 8 votes; they count like people's." in result["findings"]
    only_people = api.aggregate(str(tmp_path / "pairs.jsonl"), resamples=5)
    assert not any("verdict" in finding for finding in only_people["findings"])


def test_an_aggregate_with_a_judge_in_it_is_not_people(tmp_path):
    both = tmp_path / "both.jsonl"
    api.aggregate(judged_rows(tmp_path, ("ann",)), out=str(both), resamples=5)
    with pytest.raises(AfzalError, match="no votes of people") as refused:
        api.judge(str(both), judge="rule:shortest", people=str(both), out=str(tmp_path / "out"), resamples=20)
    assert refused.value.why == "it holds 4 verdicts of mean of 2"
    people = tmp_path / "people.jsonl"
    api.aggregate(str(tmp_path / "pairs.jsonl"), out=str(people), resamples=5)
    assert all("judged_by" not in item.extra for item in data.read(str(people)).items)


def test_ask_takes_verdicts_for_nobodys_votes(tmp_path):
    rows, out = judged_rows(tmp_path, ()), str(tmp_path / "ask.jsonl")
    result = api.ask(rows, by="random", out=out)
    assert (result["voted"], result["questions"]) == (0, 4)
    assert "note: 4 verdicts of rule:longest in the pool are not people's votes" in result.lines
    with pytest.raises(AfzalError, match=r"rows\.jsonl holds no votes of people") as refused:
        api.ask(rows, by="random", votes=rows, out=out, force=True)
    assert refused.value.why == "it holds 4 verdicts of rule:longest"


def test_ask_counts_peoples_votes_next_to_verdicts(tmp_path):
    rows, pool = judged_rows(tmp_path, ("ann",)), str(tmp_path / "pool.jsonl")
    data.write([Item("new", "another question", (Response("yes"), Response("no")))], pool, "afzal")
    result = api.ask(pool, by="random", votes=rows, out=str(tmp_path / "ask.jsonl"))
    assert (result["voted"], result["questions"]) == (4, 1)
    assert "known: 4 votes on 4 pairs" in result.lines
    assert "note: 4 verdicts of rule:longest in rows.jsonl are not people's votes" in result.lines


def test_a_judges_leaderboard_is_not_compared_with_itself(tmp_path):
    """By lengths a > b > c; people say c > b > a, with one upset per pair so that strengths are finite."""
    items = []
    names, texts = ("a", "b", "c"), {"a": "the longest", "b": "longer", "c": "no"}
    for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)] * 4):
        answers = tuple(Response(texts[names[m]], names[m]) for m in (i, j))
        vote = Comparison(0, 1, "first" if k < 3 else "second", annotator="ann")
        rule = Comparison(0, 1, "second" if k < 3 else "first", annotator="gpt")
        items.append(Item(str(k), f"q{k}", answers, (vote, rule), extra={"judged_by": ["gpt"]}))
    rows = str(tmp_path / "rows.jsonl")
    data.write(items, rows, "afzal")
    result = api.leaderboard(rows, judge="gpt", beside=rows, resamples=5)
    assert result["beside"]["spearman"] == -1.0
    assert any(finding.startswith("12 verdicts of gpt in rows.jsonl are left out") for finding in result["findings"])
    data.write([replace(item, votes=item.votes[1:]) for item in items], rows, "afzal")
    with pytest.raises(AfzalError, match="holds only verdicts of gpt"):
        api.leaderboard(rows, judge="gpt", beside=rows, resamples=5)


JOINED = (Response("yes"), Response("no"))


def one_vote(name: str, judges: list[str]) -> Item:
    return Item(
        name, "q", JOINED, (Comparison(0, 1, "first", annotator=name),), extra={"judged_by": judges} if judges else {}
    )


def test_joined_rows_keep_the_judges_of_all(tmp_path):
    rows = [one_vote("ann", []), one_vote("gpt", ["gpt"]), one_vote("rule", ["rule"])]
    (joined,) = data.join_votes(rows)
    assert joined.extra["judged_by"] == ["gpt", "rule"]
    people = data.without_verdicts([joined])
    assert [vote.annotator for vote in people.items[0].votes] == ["ann"]
    assert (people.verdicts, people.judges) == (2, ("gpt", "rule"))
    assert "judged_by" not in data.join_votes([one_vote("ann", []), one_vote("bob", [])])[0].extra
    answers = [replace(row, responses=row.responses[:1], votes=()) for row in rows]
    assert pool.join_answers(answers)[0].extra["judged_by"] == ["gpt", "rule"]


def test_an_aggregate_of_joined_rows_is_not_people(tmp_path):
    """Ann's row comes first and names no judge."""
    both, rows = tmp_path / "both.jsonl", tmp_path / "rows.jsonl"
    data.write([one_vote("ann", []), one_vote("gpt", ["gpt"])], rows, "afzal")
    api.aggregate(str(rows), out=str(both), resamples=5)
    (item,) = data.read(str(both)).items
    assert data.without_verdicts([item]).verdicts == 1


def test_verdicts_are_not_known_truth(tmp_path):
    rows, known = judged_rows(tmp_path, ()), tmp_path / "known.jsonl"
    for refuse in (
        lambda: api.aggregate(str(tmp_path / "pairs.jsonl"), gold=rows, resamples=5),
        lambda: web_items(AnnotationJob(str(tmp_path / "pairs.jsonl"), tmp_path / "page", gold=rows)),
    ):
        with pytest.raises(AfzalError, match=r"rows\.jsonl holds no known truth") as refused:
            refuse()
        assert refused.value.why == "it holds 4 verdicts of rule:longest"
    judged = judged_rows(tmp_path, ("ann", "bob"))
    first, *others = data.read(judged).items
    data.write([first, *(replace(item, votes=item.votes[-1:]) for item in others)], known, "afzal")
    result = api.aggregate(str(tmp_path / "pairs.jsonl"), gold=str(known), resamples=5)
    said = "4 verdicts of rule:longest in known.jsonl are left out: they are not known truth."
    assert said in result["findings"]
    items, left_out = web_items(AnnotationJob(str(tmp_path / "pairs.jsonl"), tmp_path / "page", gold=str(known)))
    assert left_out == {"verdicts of rule:longest in known.jsonl": 4}
    assert [[vote.annotator for vote in item.gold] for item in items if item.gold] == [["ann", "bob"]]
