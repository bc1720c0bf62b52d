"""Verdict files of ``afzal judge``, read by the commands that read other tools' files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from afzal import data
from afzal.cli import main
from afzal.records import Comparison, Item, Response


def answers(path: Path, words: list[int], **more: str) -> str:
    rows = [{"prompt": f"Question {k}", "completion": "word " * n, **more} for k, n in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(capsys, *arguments: object, code: int = 0) -> dict:
    assert main([str(a) for a in arguments] + ["--json", "--resamples", "20"]) == code
    return json.loads(capsys.readouterr().out)


def changed(file: Path, line: int, change: dict) -> Path:
    """Rewrite the file with one of its rows changed."""
    rows = [json.loads(text) for text in file.open()]
    rows[line] |= change
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def judged(tmp_path, capsys) -> Path:
    ours = answers(tmp_path / "ours.jsonl", [3, 5, 2, 7, 4, 4], category="short")
    theirs = answers(tmp_path / "theirs.jsonl", [2, 6, 1, 3, 9, 4])
    said(capsys, "judge", ours, "--against", theirs, "--judge", "rule:longest", "--out", tmp_path / "out")
    return tmp_path / "out"


def test_a_leaderboard_of_models_from_verdicts(judged, capsys):
    by_verdicts = said(capsys, "leaderboard", judged / "verdicts.jsonl", "--length-control")
    by_rows = said(capsys, "leaderboard", judged / "rows.jsonl", "--length-control")
    first = {line["name"]: (line["won"], line["tied"], line["lost"]) for line in by_verdicts["lines"]}
    assert first == {"ours": (3, 1, 2), "theirs": (2, 1, 3)}
    for key in ("lines", "differences", "met", "at_equal_lengths"):
        assert [x.get("value") for x in by_verdicts[key]] == [x.get("value") for x in by_rows[key]]


def test_games_without_a_verdict_are_counted(judged, capsys):
    """``rows.jsonl`` has only votes; in ``verdicts.jsonl`` "no verdict" is a separate class."""
    file = judged / "verdicts.jsonl"
    rows = [json.loads(line) for line in file.open()]
    file.write_text(
        "".join(json.dumps(row | ({"verdict": "none"} if k == 0 else {})) + "\n" for k, row in enumerate(rows))
    )
    facts = dict(said(capsys, "leaderboard", file)["facts"])
    assert (facts["verdicts"], facts["without a verdict"]) == ("5", "1")


def test_the_category_of_a_prompt_stays(judged):
    rows = [json.loads(line) for line in (judged / "rows.jsonl").open()]
    assert {row["extra"]["category"] for row in rows} == {"short"}


def test_judges_compared_with_the_label_of_rows(tmp_path, capsys):
    rows = [{"prompt": f"Q{k}", "chosen": "long answer" if k < 3 else "b", "rejected": "no, never"} for k in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--judge", "rule:longest", "--judge", "rule:shortest", "--out", tmp_path / "out")
    said(capsys, "judge", tmp_path / "pairs.jsonl", *flags)
    board = said(capsys, "leaderboard", tmp_path / "out/verdicts.jsonl", "--of", "judges")
    assert {line["name"]: line["value"] for line in board["lines"]} == {"rule:longest": 0.75, "rule:shortest": 0.25}
    voted = said(capsys, "aggregate", tmp_path / "out/verdicts.jsonl")
    assert dict(voted["facts"])["annotators"] == "2"
    assert dict(voted["facts"])["pairs of known truth"] == "4"
    assert main(["aggregate", str(tmp_path / "out/verdicts.jsonl"), "--out", str(tmp_path / "x.jsonl")]) == 2
    assert f"afzal aggregate {tmp_path / 'out/rows.jsonl'}" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "out/verdicts.jsonl")]) == 2
    assert "name no models" in capsys.readouterr().err


def test_verdicts_without_their_rows_are_refused(judged, capsys):
    (judged / "rows.jsonl").unlink()
    assert main(["leaderboard", str(judged / "verdicts.jsonl")]) == 2
    assert "refers to rows that are not in its folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": "other"}, "has no row 'other'"),
        ({"pair": [0, 5]}, "no pair of answers"),
        ({"verdict": "best"}, "not one of"),
    ],
)
def test_verdicts_that_do_not_fit_their_rows_are_refused(judged, capsys, change, why):
    file = changed(judged / "verdicts.jsonl", 2, change)
    assert main(["leaderboard", str(file)]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert "verdicts.jsonl:3" in error


def test_two_kinds_of_files_are_not_mixed(judged, capsys):
    assert main(["leaderboard", str(judged / "verdicts.jsonl"), str(judged / "rows.jsonl")]) == 2
    assert "different formats" in capsys.readouterr().err


def test_judges_that_say_the_opposite_cannot_be_weighed(tmp_path, capsys):
    """Both judges together put the models level, so every reliability fits equally well."""
    ours, theirs = (answers(tmp_path / f"{name}.jsonl", words) for name, words in (("a", [1, 2, 3]), ("b", [2, 1, 1])))
    flags = ("--judge", "rule:longest", "--judge", "rule:shortest", "--out", tmp_path / "out")
    said(capsys, "judge", ours, "--against", theirs, *flags)
    board = said(capsys, "leaderboard", tmp_path / "out/verdicts.jsonl")
    assert "weighed" not in board
    assert "a and b share the first place. 0 of 1" in board["findings"][0]
    assert any("cannot be weighed" in line for line in board["findings"])


def test_answers_without_verdicts_are_refused(tmp_path, capsys):
    assert main(["leaderboard", answers(tmp_path / "a.jsonl", [1, 2])]) == 2
    error = capsys.readouterr().err
    assert "it holds answers, but no comparisons of them" in error
    assert "afzal judge" in error


def test_answers_to_other_prompts_are_refused_by_name(tmp_path, capsys):
    ours = answers(tmp_path / "a.jsonl", [1, 2])
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "another", "completion": "x"}) + "\n")
    flags = ["--against", str(tmp_path / "b.jsonl"), "--judge", "rule:longest", "--out", str(tmp_path / "out")]
    assert main(["judge", ours, *flags]) == 2
    assert "have no prompt in common" in capsys.readouterr().err


def two_of_one_name(folder: Path) -> Path:
    """Two rows with the same id and other answers by other models; the first answer of the first one is longer."""
    items = [
        Item("x", "one", (Response("a long answer", "m1"), Response("short", "m2"))),
        Item("x", "two", (Response("s", "m1"), Response("a longer answer", "m3"))),
    ]
    data.write(items, folder / "rows.jsonl", "afzal")
    return folder / "rows.jsonl"


def test_verdicts_of_rows_with_the_same_id_are_refused_and_not_credited_to_the_last(tmp_path, capsys):
    rows = two_of_one_name(tmp_path)
    said(capsys, "judge", rows, "--judge", "rule:longest", "--out", tmp_path / "out")
    assert main(["leaderboard", str(tmp_path / "out" / "verdicts.jsonl")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "the id 'x' names several rows" in error
    assert "judge rows with ids of their own" in error
    lines = said(capsys, "leaderboard", tmp_path / "out" / "rows.jsonl", code=1)["lines"]
    assert {line["name"]: (line["won"], line["lost"]) for line in lines} == {"m1": (1, 1), "m2": (0, 1), "m3": (1, 0)}


def test_recorded_verdicts_on_rows_with_the_same_id_are_refused(tmp_path, capsys):
    rows = two_of_one_name(tmp_path)
    verdicts = tmp_path / "verdicts.jsonl"
    verdicts.write_text("".join(json.dumps({"id": "x", "judges": {"j": word}}) + "\n" for word in ("first", "second")))
    assert main(["judge", str(rows), "--judge", f"verdicts:{verdicts}:j", "--out", str(tmp_path / "out")]) == 2
    assert "the id 'x' names several of the rows" in " ".join(capsys.readouterr().err.split())


def test_the_same_row_twice_is_no_ambiguity(tmp_path, capsys):
    same = [Item("x", "one", (Response("a long answer", "m1"), Response("short", "m2")))] * 2
    data.write(same, tmp_path / "rows.jsonl", "afzal")
    said(capsys, "judge", tmp_path / "rows.jsonl", "--judge", "rule:longest", "--out", tmp_path / "out")
    lines = said(capsys, "leaderboard", tmp_path / "out" / "verdicts.jsonl", code=1)["lines"]
    assert {line["name"]: line["won"] for line in lines} == {"m1": 2, "m2": 0}


def voted(k: int, *votes: Comparison, group: str = "") -> Item:
    return Item(str(k), f"question {k}", (Response("a", "m1"), Response("b", "m2")), votes, group=group)


def test_a_repeat_is_no_second_vote_on_a_leaderboard(tmp_path, capsys):
    """Ann answers question 0 again, with weight 0: she has one vote on it, and what is left out is said."""
    first, second = (Comparison(0, 1, outcome, annotator="ann") for outcome in ("first", "second"))
    rows = tmp_path / "rows.jsonl"
    data.write([voted(0, first, replace(second, weight=0.0)), voted(1, second), voted(2, second)], rows, "afzal")
    body = said(capsys, "leaderboard", rows)
    assert {line["name"]: (line["won"], line["lost"]) for line in body["lines"]} == {"m1": (1, 2), "m2": (2, 1)}
    assert any("Left out: 1 comparison of weight 0." in finding for finding in body["findings"])
    data.write([voted(0, replace(second, weight=0.0))], rows, "afzal")
    assert main(["leaderboard", str(rows)]) == 2
    assert "all of weight 0" in " ".join(capsys.readouterr().err.split())


def test_rows_of_one_group_are_one_prompt_on_a_leaderboard(tmp_path, capsys):
    first, second = (Comparison(0, 1, outcome, annotator="ann") for outcome in ("first", "second"))
    rows = tmp_path / "rows.jsonl"
    data.write([voted(0, first), voted(1, second, group="one"), voted(2, second, group="one")], rows, "afzal")
    assert dict(said(capsys, "leaderboard", rows)["facts"])["prompts"] == "2"


def test_fastchat_votes_without_question_ids_share_a_prompt_if_their_dialogues_do(tmp_path, capsys):
    """Three answers to one question and one to another: two prompts, though all first dialogues differ."""
    rows = []
    for k, question in enumerate(("same?", "same?", "same?", "other?")):
        talks = [[{"role": "user", "content": question}, {"role": "assistant", "content": a}] for a in (f"a{k}", "b")]
        winner = "model_a" if k % 2 else "model_b"
        rows.append({"model_a": "m1", "model_b": "m2", "winner": winner} | dict(zip(TALKS, talks, strict=True)))
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = dict(said(capsys, "leaderboard", file)["facts"])
    assert (facts["prompts"], facts["pairs of answers"]) == ("2", "4")


TALKS = ("conversation_a", "conversation_b")
