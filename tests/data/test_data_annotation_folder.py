"""The annotation page's folder: which votes count, which train, and what is refused."""

import json

import pytest

from afzal.cli import main
from afzal.data import read
from afzal.errors import AfzalError
from afzal.judge.labels import FIRST, SECOND, of_items
from afzal.records import Comparison, Ranking, Rating, preferences

ITEMS = [
    {"afzal": 1, "id": "x", "prompt": "P", "responses": [{"turns": "a"}, {"turns": "b"}]},
    {"afzal": 1, "id": "y", "prompt": "Q", "responses": [{"turns": "a"}, {"turns": "b"}, {"turns": "c"}]},
    {
        "afzal": 1,
        "id": "z",
        "prompt": "R",
        "responses": [{"turns": "a"}, {"turns": "b"}],
        "votes": [{"vote": "comparison", "first": 0, "second": 1, "outcome": "first"}],
        "extra": {"gold": True},
    },
]


def line(id, item, **facts):
    usual = {"at": f"2026-11-28T10:12:{int(id):02d}Z", "annotator": "ann", "axis": None, "kind": "pair"}
    usual |= {"shown": [1, 0], "outcome": "first", "strength": 2, "seconds": 4.0, "repeat_of": None, "retracts": None}
    return {"id": id, "item": item} | usual | facts


LINES = [
    line("1", "x"),
    line("2", "x", annotator="bob", outcome="tie", strength=None),
    line("3", "x", repeat_of="1", shown=[0, 1], outcome="first"),
    line("4", "y", kind="rank", groups=[[2], [0, 1]], shown=[1, 2, 0]),
    line("5", "y", kind="rate", values=[3, None, 1], shown=[1, 2, 0]),
    line("6", "y", kind="skip", reason="broken"),
    line("7", "z", gold=True, outcome="second"),
    line("8", "x", annotator="eve"),
    line("9", "x", annotator="eve", kind="undo", retracts="8"),
]


def folder(path, lines, items=ITEMS, end="\n"):
    (path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    (path / "votes.jsonl").write_text("\n".join(json.dumps(row) for row in lines) + end)
    (path / "page.json").write_text("{}")
    return path


def test_every_valid_vote_is_read_with_its_metadata(tmp_path):
    x, y, z = read(folder(tmp_path, LINES)).items
    at = "2026-11-28T10:12:0"
    assert x.votes == (
        Comparison(1, 0, "first", 2, None, 1.0, "ann", None, 1, 4.0, "1", f"{at}1Z"),
        Comparison(1, 0, "tie", None, None, 1.0, "bob", None, 1, 4.0, "2", f"{at}2Z"),
        Comparison(0, 1, "first", 2, None, 0.0, "ann", None, 0, 4.0, "3", f"{at}3Z"),
    )
    assert y.votes == (
        Ranking(((2,), (0, 1)), (1, 2, 0), 1.0, "ann", None, 4.0, "4", f"{at}4Z"),
        Rating(1, 3, "score", 1.0, "ann", None, 2.0, "5", f"{at}5Z"),
        Rating(0, 1, "score", 1.0, "ann", None, 2.0, "5", f"{at}5Z"),
    )
    assert y.extra == {"skipped": ["broken"]}
    assert z.votes == (Comparison(1, 0, "second", 2, None, 0.0, "ann", None, 1, 4.0, "7", f"{at}7Z"),)
    assert z.gold == (Comparison(0, 1, "first"),)


def test_repeats_and_votes_on_known_truth_train_nothing(tmp_path):
    x, _, z = read(folder(tmp_path, LINES)).items
    assert [(q.i, q.j, q.p, q.weight) for q in preferences(x)] == [(1, 0, 0.75, 1.0)]
    assert preferences(z) == ()


def test_people_are_measured_by_repeats_and_known_truth(tmp_path):
    items = read(folder(tmp_path, LINES)).items
    labels = of_items(items)
    assert labels.annotators == ("ann", "bob")
    # the repeat of ann's first answer says the opposite, and does not take its place
    assert labels.table[0].tolist() == [SECOND, 2]
    assert [s.is_repeat for s in labels.entries if s.pair == 0] == [False, False, True]
    assert labels.gold.tolist() == [-1, -1, -1, -1, FIRST]
    assert labels.table[-1].tolist() == [FIRST, -1]


def test_the_outcome_of_the_lines_is_reported(tmp_path):
    notes = [note for note in read(folder(tmp_path, LINES)).notes if note.startswith("votes.jsonl")]
    assert notes == [
        "votes.jsonl: 4 votes to train on",
        "votes.jsonl: 1 repeats, kept with weight 0 for self-consistency",
        "votes.jsonl: 1 votes on rows of known truth, kept with weight 0 for accuracy",
        "votes.jsonl: 1 skips, with reasons in extra.skipped",
        "votes.jsonl: 1 retracted and left out",
    ]


def test_a_vote_may_be_retracted_and_given_again(tmp_path):
    lines = [*LINES[:1], line("2", "x", kind="undo", retracts="1"), line("3", "x", outcome="second")]
    (item, *_) = read(folder(tmp_path, lines)).items
    assert [vote.outcome for vote in item.votes] == ["second"]


def test_a_torn_last_line_is_no_vote(tmp_path):
    whole = read(folder(tmp_path, LINES)).fingerprint
    (tmp_path / "votes.jsonl").write_text((tmp_path / "votes.jsonl").read_text() + '{"id": "10", "it')
    assert read(tmp_path).fingerprint == whole


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([line("1", "elsewhere")], "elsewhere"),
        ([line("1", "x", kind="poke")], "poke"),
        ([line("1", "x", kind="rank")], "rank"),
        ([line("1", "x", shown=[0])], "pair"),
        ([line("1", "x", shown=[0, 7])], "first|second"),
        ([line("1", "x", outcome="left")], "outcome"),
        ([line("1", "y", kind="rate", values=[1], shown=[0, 1])], "rate"),
    ],
)
def test_lines_that_make_no_sense_are_refused_with_their_place(tmp_path, lines, why):
    with pytest.raises(AfzalError, match=why) as refused:
        read(folder(tmp_path, lines))
    assert "jsonl:1" in str(refused.value.where)


def test_the_commands_take_the_folder(tmp_path, capsys):
    source = str(folder(tmp_path, LINES))
    assert main(["aggregate", source, "--json", "--resamples", "5"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [(line["name"], line["right"], line["consistent"]) for line in body["lines"]] == [
        ("ann", 1.0, 0.0),
        ("bob", None, None),
    ]
    assert "votes.jsonl: 1 retracted and left out" in body["findings"]
    assert main(["check", source]) == 0
    said = capsys.readouterr().out
    assert "votes.jsonl: 4 votes to train on" in said
    assert "agree in 0.0% of 1 cases" in said  # one person's repeat is not agreement between two people
