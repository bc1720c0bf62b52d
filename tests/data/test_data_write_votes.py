"""Vote files of other tools: AlpacaEval's annotations and FastChat's votes, written and read back."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from afzal import judge
from afzal.cli import main
from afzal.data import join_votes, plan, read, without_verdicts, write
from afzal.data.grouping import group_by_content
from afzal.errors import AfzalError
from afzal.records import Comparison, Item, Message, Ranking, Rating, Response

PROMPT = (Message("user", "Sky?"),)
A, B, C = (Response((Message("assistant", text),), f"m{k}") for k, text in enumerate(("Blue.", "Green.", "Red.")))


def item(*votes, responses=(A, B), **kwargs):
    return Item("q1", kwargs.pop("prompt", PROMPT), responses, votes, **kwargs)


def test_alpaca_evals_rows_by_hand():
    votes = (
        Comparison(0, 1, "first", annotator="ann", shown_first=1, seconds=2.5),
        Comparison(0, 1, "second", annotator="ben"),
        Comparison(1, 0, "tie", annotator="eve"),
        Comparison(0, 1, "first", probability=0.75, annotator="j"),
        Comparison(0, 1, "first", weight=0.0, annotator="again"),
    )
    rows = plan([item(*votes)], "alpaca_eval").rows
    assert rows[0] == {
        "instruction": "Sky?",
        "output_1": "Green.",
        "generator_1": "m1",
        "output_2": "Blue.",
        "generator_2": "m0",
        "annotator": "ann",
        "preference": 2,
        "time_per_example": 2.5,
    }
    assert [(row["output_1"], row["preference"]) for row in rows[1:]] == [("Blue.", 2), ("Blue.", 1.5), ("Blue.", 1.25)]


def test_fastchats_rows_by_hand():
    vote = Comparison(0, 1, "both_bad", annotator="ann", at="2023-11-14T22:13:20+00:00")
    (row,) = plan([item(vote)], "fastchat").rows
    asked = {"role": "user", "content": "Sky?"}
    assert row == {
        "question_id": "q1",
        "model_a": "m0",
        "model_b": "m1",
        "winner": "tie (bothbad)",
        "judge": "ann",
        "turn": 1,
        "conversation_a": [asked, {"role": "assistant", "content": "Blue."}],
        "conversation_b": [asked, {"role": "assistant", "content": "Green."}],
        "tstamp": 1700000000.0,
    }


def test_a_ranking_is_written_as_its_pairs():
    ranked = item(Ranking(((2,), (0, 1)), shown=(1, 2, 0), annotator="ann"), responses=(A, B, C))
    rows = plan([ranked], "alpaca_eval").rows
    said = [(row["output_1"], row["output_2"], row["preference"]) for row in rows]
    assert said == [("Green.", "Blue.", 1.5), ("Red.", "Blue.", 1), ("Green.", "Red.", 2)]


@pytest.mark.parametrize(
    ("odd", "target", "reason"),
    [
        (item(Comparison(0, 1, "both_bad")), "alpaca_eval", "both_bad"),
        (item(Comparison(0, 1, "first"), prompt=(*PROMPT, *A.turns, *PROMPT)), "alpaca_eval", "dialogue"),
        (item(Comparison(0, 1, "first", probability=0.8)), "fastchat", "soft_label"),
        (item(Rating(0, 1.0, "score")), "fastchat", "no_comparison"),
        (
            item(Comparison(0, 1, "first"), prompt="Sky", responses=(Response("a"), Response("b"))),
            "fastchat",
            "plain_text",
        ),
    ],
)
def test_what_vote_files_cannot_hold(tmp_path, odd, target, reason):
    assert [drop.reason for drop in plan([odd], target).skipped] == [reason]
    with pytest.raises(AfzalError):
        write([odd], tmp_path / "out.jsonl", target)


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_alpaca_eval_is_a_list_if_its_tools_want_one(tmp_path, name):
    rows = [item(Comparison(0, 1, "first", annotator="a")), item(Comparison(0, 1, "tie", annotator="b"))]
    assert write(rows, tmp_path / name, "alpaca_eval") == 2
    text = (tmp_path / name).read_text()
    assert (len(json.loads(text)) if name == "out.json" else text.count("\n")) == 2
    assert len(read(tmp_path / name).items) == 2


def test_alpaca_evals_values(tmp_path):
    row = {
        "instruction": "Q",
        "output_1": "a",
        "generator_1": "m",
        "output_2": "b",
        "generator_2": "n",
        "annotator": "j",
    }
    rows = [row | {"preference": p} for p in (1, 2.0, 1.5, 0, 1.25, None)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    dataset = read(tmp_path / "a.jsonl")
    told = [(v.outcome, v.probability, v.annotator) for i in dataset.items for v in i.votes]
    assert told == [
        ("first", None, "j"),
        ("second", None, "j"),
        ("tie", None, "j"),
        ("tie", None, "j"),
        ("first", 0.75, "j"),
    ]
    assert dataset.drop_counts == {"no_votes": 1}
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"preference": 3}) + "\n")
    with pytest.raises(AfzalError, match="not one of 1 to 2"):
        read(tmp_path / "b.jsonl")


def test_rows_of_different_people_are_merged_and_repeats_are_not():
    one, other = item(Comparison(0, 1, "first", annotator="a")), item(Comparison(0, 1, "tie", annotator="b"))
    turned = replace(other, responses=(B, A), votes=(Comparison(0, 1, "second", annotator="c", shown_first=0),))
    (kept,) = join_votes([one, other, turned])
    assert [(v.annotator, v.p_first) for v in kept.votes] == [("a", 1.0), ("b", 0.5), ("c", 1.0)]
    assert [v.shown_first for v in kept.votes] == [0, 0, 1]
    assert len(join_votes([one, one])) == 2
    alone = [replace(one, responses=(A,), votes=(Rating(0, k, "score", annotator=str(k)),)) for k in range(2)]
    assert len(join_votes(alone)) == 2


@pytest.mark.parametrize("target", ["alpaca_eval", "fastchat"])
def test_pandalm_there_and_back(shared, tmp_path, capsys, target):
    """550 pairs x 3 people: all 1,650 votes come back with their sides, and aggregation finds the same."""
    source = str(shared / "data/annot/pandalm_human3.json")
    out = tmp_path / "votes.json"
    assert main(["convert", source, str(out), "--to", target]) == 0
    assert "1650 rows" in capsys.readouterr().out
    before, after = read(source), read(out)
    there = Counter((repr(i.prompt), repr(i.responses), v.annotator, v.p_first) for i in before.items for v in i.votes)
    back = Counter((repr(i.prompt), repr(i.responses), v.annotator, v.p_first) for i in after.items for v in i.votes)
    assert sum(back.values()) == 1650
    assert back == there
    assert len(join_votes(after.items)) == 550
    assert len(judge.read([str(out)]).verdicts) == 1650
    kept = tmp_path / "kept.jsonl"
    assert main(["aggregate", str(out), "--out", str(kept), "--resamples", "5"]) == 0
    said = capsys.readouterr().out
    assert "Dawid-Skene moves 0 of 502 decided pairs." in said
    assert "pairs 550" in said


@pytest.mark.parametrize("target", ["alpaca_eval", "fastchat", "afzal"])
def test_a_judges_verdict_stays_one_in_every_layout_that_holds_votes(target, tmp_path):
    votes = (Comparison(0, 1, "first", annotator="ann"), Comparison(0, 1, "second", annotator="gpt"))
    path = tmp_path / "votes.jsonl"
    write([item(*votes, extra={"judged_by": ["gpt"]})], path, target)
    (joined,) = join_votes(read(str(path)).items)
    assert Counter(vote.annotator for vote in joined.votes) == {"ann": 1, "gpt": 1}
    people = without_verdicts([joined])
    assert [(vote.annotator, vote.outcome) for vote in people.items[0].votes] == [("ann", "first")]
    assert (people.verdicts, people.judges) == (1, ("gpt",))


def test_pairs_name_the_loss_of_who_is_a_judge():
    votes = (Comparison(0, 1, "first", annotator="ann"), Comparison(0, 1, "first", annotator="gpt"))
    lost = "which votes are verdicts of judges"
    assert plan([item(*votes, extra={"judged_by": ["gpt"]})], "conversational").left_out[lost] == 1
    assert lost not in plan([item(*votes)], "conversational").left_out
    assert plan([item(votes[1], extra={"judged_by": ["gpt"]})], "openai").left_out[lost] == 1


def test_labels_of_judges_alone_are_read_back_as_verdicts(tmp_path):
    lost = "which votes are verdicts of judges"
    gpt, rule, ann = (Rating(0, 1.0, "label", annotator=name) for name in ("gpt", "rule", "ann"))
    both, alone, mixed, person = (
        item(*votes, responses=(A,), extra={"judged_by": ["gpt", "rule"]})
        for votes in ((gpt, rule), (gpt, replace(ann, weight=0.0)), (gpt, ann), (ann,))
    )
    write([both, alone, mixed, person], tmp_path / "labels.jsonl", "conversational")
    read_back = read(str(tmp_path / "labels.jsonl")).items
    assert [vote.annotator for x in read_back for vote in x.votes] == ["gpt and rule", "gpt", None, None]
    people = without_verdicts(read_back)
    assert [len(x.votes) for x in people.items] == [0, 0, 1, 1]
    assert (people.verdicts, people.judges) == (2, ("gpt", "gpt and rule"))
    assert [plan([x], "conversational").left_out[lost] for x in (both, alone, mixed, person)] == [0, 0, 1, 0]


def test_each_response_names_the_judge_of_its_own_labels():
    votes = (Rating(0, 1.0, "label", annotator="gpt"), Rating(1, 0.0, "label", annotator="ann"))
    planned = plan([item(*votes, extra={"judged_by": ["gpt"]})], "conversational")
    assert [row.get("judged_by") for row in planned.rows] == [["gpt"], None]
    assert planned.left_out["the names of annotators"] == 1
    assert planned.left_out["which votes are verdicts of judges"] == 0


def test_a_label_that_counts_keeps_its_weight_next_to_one_that_does_not(tmp_path):
    """A person who answers a question again: the repeat has weight 0 and must not take the label out of training."""
    votes = [Rating(0, 1.0, "label", annotator="ann", weight=w) for w in (0.5, 0.0)]
    write([item(*votes, responses=(A,))], tmp_path / "labels.jsonl", "conversational")
    (back,) = read(str(tmp_path / "labels.jsonl")).items
    assert [(vote.value, vote.weight) for vote in back.votes if isinstance(vote, Rating)] == [(1.0, 0.5)]


@pytest.mark.parametrize("judges", [["gpt"], ["gpt", "rule"]])
def test_pairs_of_judges_alone_are_read_back_as_verdicts(judges, tmp_path):
    votes = [Comparison(0, 1, "first", annotator=name) for name in judges]
    verdict = item(*votes, extra={"judged_by": judges})
    write([verdict, item(Comparison(0, 1, "second", annotator="ann"))], tmp_path / "pairs.jsonl", "conversational")
    read_back = read(str(tmp_path / "pairs.jsonl")).items
    assert [vote.annotator for x in read_back for vote in x.votes] == [" and ".join(judges), None]
    people = without_verdicts(read_back)
    assert (people.verdicts, people.judges) == (1, (" and ".join(judges),))
    assert "which votes are verdicts of judges" not in plan([verdict], "conversational").left_out


@pytest.mark.parametrize(
    ("target", "lost"),
    [
        ("alpaca_eval", {"times of votes", "other columns"}),
        ("fastchat", {"how long votes took", "other columns"}),
        ("conversational", {"names of models", "times of votes, and how long they took", "other columns"}),
        ("openai", {"names of models", "times of votes, and how long they took", "other columns"}),
        ("afzal", set()),
    ],
)
def test_columns_and_times_that_a_layout_cannot_hold_are_counted(target, lost):
    lost = lost | {"ids of votes", "groups that stay on one side of a split"} if target != "afzal" else lost
    vote = Comparison(0, 1, "first", seconds=4.0, id="v7", at="2025-01-01T00:00:00+00:00")
    assert set(plan([item(vote, extra={"country": "CH"}, group="session 3")], target).left_out) == lost
    plain = item(Comparison(0, 1, "first"))
    kept = plan([replace(plain, group=group_by_content(plain))], target).left_out
    assert not kept.keys() & (lost - {"names of models"})
