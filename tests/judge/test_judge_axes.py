"""Opinions on several axes answer different questions: they are aggregated separately, and do not contradict."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import afzal
from afzal import data
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import aggregate, annotators, labels
from afzal.records import Comparison, Item, Rating, Response


def said_by(who: str, outcome: str, axis: str | None) -> Comparison:
    return Comparison(0, 1, outcome, annotator=who, axis=axis)


def item(number: int, *votes: Comparison) -> Item:
    return Item(f"i{number}", f"prompt {number}", (Response(f"a {number}"), Response(f"b {number}")), votes)


def on_two_axes(n: int = 25) -> list[Item]:
    """Three people: all find the first answer helpful, and two of three find the second one harmless."""
    helpful = [said_by(who, "first", "helpful") for who in ("ali", "dil", "umi")]
    harmless = [said_by(who, "first" if who == "umi" else "second", "harmless") for who in ("ali", "dil", "umi")]
    return [item(k, *helpful, *harmless) for k in range(n)]


@pytest.mark.parametrize("by", ["mean", "jeffreys", "majority", "dawid_skene", "crowd_bt"])
def test_each_axis_gets_its_own_answer(tmp_path, by):
    source, out = tmp_path / "votes.jsonl", tmp_path / "one.jsonl"
    data.write(on_two_axes(), source, "afzal")
    afzal.api.aggregate(source, by=by, out=out, resamples=10, force=True)
    rows = data.read(str(out)).items
    assert len(rows) == 25
    for row in rows:
        better = {vote.axis: vote.p_first > 0.5 for vote in row.votes}
        assert better == {"helpful": True, "harmless": False}


def test_votes_on_another_axis_are_no_repeats(tmp_path):
    people = annotators.annotator_reports(labels.of_items(on_two_axes()))
    assert [(person.labels, person.consistent, person.repeats) for person in people] == [(50, None, 0)] * 3
    data.write(on_two_axes(), tmp_path / "votes.jsonl", "afzal")
    result = afzal.api.aggregate(tmp_path / "votes.jsonl", resamples=10)
    (table,) = [table for table in result["tables"] if table["title"] == "By axis"]
    assert [row[:3] for row in table["rows"]] == [["harmless", "25", "25"], ["helpful", "25", "25"]]
    assert [row[3].split()[0] for row in table["rows"]] == ["0.333", "1.000"]


@pytest.mark.parametrize(
    ("vote", "truths", "known"),
    [
        ("helpful", {"helpful": "first", "harmless": "second"}, 0),
        ("harmless", {"helpful": "first", "harmless": "second"}, 1),
        ("helpful", {None: "second"}, 1),
        ("helpful", {"harmless": "second"}, -1),
        (None, {"harmless": "second"}, 1),
    ],
)
def test_a_truth_holds_on_its_axis_and_one_without_an_axis_on_all(vote, truths, known):
    gold = item(0, *(said_by("truth", outcome, axis) for axis, outcome in truths.items()))
    assert labels.of_items([item(0, said_by("ali", "first", vote))], [gold]).gold.tolist() == [known]


def test_check_names_the_axes_that_it_pools(tmp_path):
    data.write(on_two_axes(), tmp_path / "votes.jsonl", "afzal")
    assert "axes: harmless, helpful (pooled here" in str(afzal.api.check(tmp_path / "votes.jsonl"))
    data.write([item(0, said_by("ali", "first", "helpful"))], tmp_path / "one.jsonl", "afzal")
    assert "axes: " not in str(afzal.api.check(tmp_path / "one.jsonl"))


def test_verdicts_of_judges_are_not_written_as_the_votes_of_somebody_else(tmp_path):
    row = {"instruction": "Sky?", "input": "", "output_1": "Blue.", "output_2": "Green.", "label": 1}
    judges = {"one": [1, 1], "two": [2, 2], "three": [2, 2]}
    source = tmp_path / "judged.jsonl"
    source.write_text("".join(json.dumps({**row, "input": str(k), "judges": judges}) + "\n" for k in range(3)))
    assert len(afzal.api.aggregate(source, resamples=5)["lines"]) == 3
    for more in ({"out": tmp_path / "out.jsonl"}, {"gold": source}):
        with pytest.raises(AfzalError, match="its 3 judges can be measured"):
            afzal.api.aggregate(source, resamples=5, **more)
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_state_the_better_answer_first_are_nobodys_habit():
    rows = [item(k, Comparison(0, 1, "first")) for k in range(40)]
    (person,) = annotators.annotator_reports(labels.of_items(rows))
    assert person.remarks == ()
    (person,) = annotators.annotator_reports(labels.of_items([item(k, Comparison(0, 1, "tie")) for k in range(40)]))
    assert person.remarks == ("says 'tie' 100% of the time",)


def test_rows_without_votes_are_not_counted_as_opinions(tmp_path, capsys):
    data.write([item(0, said_by("ali", "first", None)), item(1), item(2)], tmp_path / "votes.jsonl", "afzal")
    assert main(["aggregate", str(tmp_path / "votes.jsonl"), "--resamples", "5"]) == 0
    assert "1 row has one opinion by mean" in capsys.readouterr().out


def test_thousands_of_annotators_take_memory_only_for_their_votes():
    """1,000 pairs and nearly 2,000 people, four per pair: a table of four classes would take 55 MB."""
    generator = np.random.default_rng(0)
    people = [generator.choice(2000, 4, replace=False) for _ in range(1000)]
    rows = [
        item(k, *(said_by(f"w{w}", "first" if w % 3 else "second", None) for w in own)) for k, own in enumerate(people)
    ]
    said = labels.of_items(rows)
    tracemalloc.start()
    agreed, summaries = annotators.overall_agreement(said, resamples=5), annotators.annotator_reports(said)
    p_first = aggregate.aggregate(said).p_first
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, peak
    assert agreed is not None
    assert len(summaries) == len(said.annotators) > 1700
    assert p_first.tolist() == pytest.approx([np.mean(own % 3 > 0) for own in people])


def test_votes_of_weight_0_are_aggregated_and_train_nothing(tmp_path, capsys):
    """The page's votes on rows with known truth are read with weight 0: they measure the annotators."""
    controls = [
        item(k, *(replace(said_by(who, "first", None), weight=0.0) for who in ("ali", "dil"))) for k in range(3)
    ]
    known = [replace(one, gold=(Comparison(0, 1, "first"),)) for one in controls]
    source, out = tmp_path / "votes.jsonl", tmp_path / "one.jsonl"
    data.write([*known, item(7, said_by("ali", "second", None))], source, "afzal")
    for kind in ("soft", "weighted"):
        assert main(["aggregate", str(source), "--resamples", "5", "--labels", kind, "--out", str(out), "--force"]) == 0
        assert [[v.weight for v in row.votes] for row in data.read(str(out)).items] == [[0], [0], [0], [1]]
        assert "train dpo" in capsys.readouterr().out
    data.write(known, source, "afzal")
    assert main(["aggregate", str(source), "--resamples", "5", "--out", str(out), "--force"]) == 0
    told = capsys.readouterr().out
    assert "no row has an opinion that could train" in told
    assert "not read" not in told
    assert "train dpo" not in told


def test_prompts_that_belong_together_are_counted_once_as_check_counts_groups(tmp_path):
    texts = ["Hello there", "hello  THERE", "Bye", "Bye"]
    rows = [replace(item(k, said_by("ali", "first", None)), prompt=text) for k, text in enumerate(texts)]
    data.write(rows, tmp_path / "votes.jsonl", "afzal")
    result = afzal.api.aggregate(tmp_path / "votes.jsonl", resamples=5)
    assert ("groups of prompts", "2") in result["facts"]
    assert "items: 4 over 3 prompts in 2 groups" in str(afzal.api.check(tmp_path / "votes.jsonl"))


def test_people_as_a_judge_keep_what_one_of_them_said_on_each_axis(tmp_path):
    """Three of four opinions are for the first response; a person's last one must not replace both of theirs."""
    votes = [said_by(who, "first", "helpful") for who in ("ali", "dil", "umi")] + [said_by("ali", "second", "harmless")]
    data.write([item(k, *votes) for k in range(20)], tmp_path / "votes.jsonl", "afzal")
    told: list[str] = []
    how = {"judge": "rule:longest", "out": tmp_path / "out", "resamples": 5, "say": told.append}
    result = afzal.api.judge(tmp_path / "votes.jsonl", **how)
    assert "of 80 labels" in str(result)
    assert [line for line in told if "votes on harmless, helpful are pooled" in line]


def test_asking_says_that_it_pools_axes_and_refuses_one_that_is_not_there(tmp_path):
    data.write(on_two_axes(), tmp_path / "votes.jsonl", "afzal")

    def asked(**more):
        return afzal.api.ask(tmp_path / "votes.jsonl", by="repeat", out=tmp_path / "q.jsonl", force=True, **more)

    assert "harmless, helpful are pooled" in asked()["warnings"][0]
    assert not asked(axis="harmless")["warnings"]
    with pytest.raises(AfzalError, match=r"'harmles'(.|\n)*there are votes on harmless, helpful"):
        asked(axis="harmles")


def test_scores_of_weight_0_are_averaged_and_train_nothing(tmp_path):
    rated = [Rating(k, value, "score", 0.0, annotator="ali") for k, value in enumerate((5.0, 1.0))]
    source, out = tmp_path / "votes.jsonl", tmp_path / "one.jsonl"
    rows = [replace(item(0), votes=tuple(rated)), replace(item(1), votes=tuple(replace(v, weight=1.0) for v in rated))]
    data.write(rows, source, "afzal")
    afzal.api.aggregate(source, out=out, resamples=5)
    assert [[v.weight for v in row.votes] for row in data.read(str(out)).items] == [[0, 0], [1, 1]]
