"""Scores by several people, voter counts and ranked groups: the scale is recognised, means are taken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from afzal import data
from afzal.cli import main
from afzal.judge import ratings
from afzal.records import Comparison, Item, Rating, Response
from afzal.stats import agreement, resampling
from afzal.stats import ratings as figures


def items(values: np.ndarray, seconds: float = 5.0) -> list[Item]:
    """Rows of two answers each; everybody always rates the second 0."""
    made = []
    for k, row in enumerate(values):
        votes = [Rating(0, float(v), "score", annotator=f"r{n}", seconds=seconds) for n, v in enumerate(row) if v == v]
        made.append(Item(f"i{k}", f"p{k}", (Response("a"),), tuple(votes)))
    return made


def scored(n: int = 200, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 2, size=(n, 1))
    return np.clip((truth + generator.normal(0, noise, size=(n, 4))).round(), -4, 4)


def test_alpha_without_counts_is_alpha_of_the_counts():
    values = scored()
    values[::3, 1] = np.nan
    values[5, 1:] = np.nan  # a unit with one score has no pair
    counts, used = figures.class_counts(values)
    prompts = [str(k) for k in range(len(values))]
    known = resampling.sums(figures.alpha_sums(values), prompts, resamples=20).interval(figures.alpha_of)
    assert known.value == pytest.approx(agreement.krippendorff(counts, "interval", used.tolist()), abs=1e-12)
    slow = resampling.resampled(
        lambda w: agreement.krippendorff(counts, "interval", used.tolist(), w), prompts, resamples=20
    )
    assert (known.low, known.high) == pytest.approx((slow.low, slow.high), abs=1e-12)
    assert figures.alpha_of(figures.alpha_sums(3 * values + 1).sum(0)) == pytest.approx(known.value)


def test_scales_are_recognised():
    assert figures.scale_of(np.array([[0.0, 1.0], [1.0, np.nan]])) == "two values"
    assert figures.scale_of(np.array([[0.0, 1.0], [4.0, np.nan]])) == "whole numbers"
    assert figures.scale_of(np.array([[0.0, 1.5], [4.0, np.nan]])) == "numbers"
    assert figures.scale_of(np.arange(40.0).reshape(20, 2)) == "numbers"


def test_one_against_the_mean_of_the_others_by_hand():
    values = np.array([[1.0, 3.0, np.nan], [2.0, 2.0, 5.0], [-1.0, 1.0, 0.0], [7.0, np.nan, np.nan]])
    sums = figures.rest_sums(values)[:, 0].sum(0)
    own, theirs = np.array([1.0, 2.0, -1.0]), np.array([3.0, 3.5, 0.5])
    assert figures.correlation_of(sums) == pytest.approx(np.corrcoef(own, theirs)[0, 1])
    assert figures.above_of(sums) == pytest.approx((own - theirs).mean())
    assert figures.same_sign_of(sums) == pytest.approx(2 / 3)


def test_equal_and_near_scores_by_hand():
    known = figures.pairwise(np.array([[1.0, 1.0, 2.0], [1.0, 4.0, np.nan], [3.0, np.nan, np.nan]]))
    assert (known.equal, known.within_one) == (pytest.approx(1 / 4), pytest.approx(3 / 4))
    with pytest.raises(ValueError, match="two scores"):
        figures.pairwise(np.array([[1.0, np.nan]]))


def test_more_raters_make_a_steadier_mean():
    assert figures.reliability(0.5, 1) == 0.5
    assert figures.reliability(0.5, 2) == pytest.approx(2 / 3)


def test_habits_of_people_who_rate():
    values = scored()
    values[:, 3] = -values[:, 0]
    rows = items(values)
    lazy = [Rating(0, 1.0, "score", annotator="lazy", seconds=1.0)]
    scores = ratings.of_items([Item(i.id, i.prompt, i.responses, (*i.votes, *lazy)) for i in rows])
    said = " ".join(ratings.report(scores, "x", resamples=50)["findings"])
    assert "r3: goes against the others" in said
    assert "lazy: gives 1 100% of the time" in said
    assert "lazy: takes 1.0 s; the median of all is 5.0 s" in said
    assert "r0:" not in said


def test_repeats_show_consistency_and_count_once():
    votes = (Rating(0, 3.0, "score", annotator="a"), Rating(0, 1.0, "score", weight=0.0, annotator="a"))
    scores = ratings.of_items([Item("x", "p", (Response("r"),), votes)])
    assert scores.values.tolist() == [[3.0]]
    assert scores.repeats == (((3.0, 1.0),),)
    assert ratings.report(scores, "x", resamples=5)["lines"][0]["consistent"] == 0.0


def test_means_take_the_place_of_scores(tmp_path):
    votes = (
        *(Rating(0, v, "score", annotator=f"r{v}") for v in (1.0, 2.0, 6.0)),
        Rating(1, 4.0, "score", annotator="r1.0", axis="clear"),
        Rating(1, 1.0, "label"),
    )
    (kept,) = ratings.as_items(rows := [Item("x", "p", (Response("a"), Response("b")), votes)], ratings.of_items(rows))
    assert kept.votes == (
        Rating(1, 1.0, "label"),
        Rating(0, 3.0, "score", annotator="mean of 3"),
        Rating(1, 4.0, "score", annotator="mean of 1", axis="clear"),
    )


def test_scores_are_averaged_and_nothing_else(tmp_path, capsys):
    source = tmp_path / "s.jsonl"
    data.write(items(scored(40)), source, "afzal")
    out = tmp_path / "o.jsonl"
    assert main(["aggregate", str(source), "--out", str(out), "--page", str(tmp_path / "page")]) == 0
    assert "Dawid-Skene would ignore the distances" in capsys.readouterr().out
    assert len(data.read(str(out)).items) == 40
    assert "correlation with the mean" in (tmp_path / "page/annotators.html").read_text()
    assert main(["aggregate", str(source), "--by", "dawid_skene"]) == 2
    assert "scores are averaged" in capsys.readouterr().err


def test_comparisons_come_before_scores(tmp_path, capsys):
    row = Item(
        "x", "p", (Response("a"), Response("b")), (Comparison(0, 1, "first", annotator="n"), Rating(0, 1, "score"))
    )
    data.write([row], tmp_path / "s.jsonl", "afzal")
    assert main(["aggregate", str(tmp_path / "s.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "pairs"


def test_counts_of_voters_and_ranks(tmp_path, capsys):
    rows = [
        {"question": "q1", "option_1": "a", "option_2": "b", "option_3": "c", "answer": 1, "num_voters": [3, 1]},
        {"question": "q2", "option_1": "a", "option_2": "b", "option_3": "c", "answer": 2, "num_voters": [2, 2]},
    ]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["aggregate", str(tmp_path / "v.jsonl"), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    known = {f["name"]: f["value"] for f in body["figures"]}
    assert known["most people are right"] == 0.5  # a draw does not count as right
    assert known["share of votes on the right option"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert dict(map(tuple, body["facts"]))["options counted"] == "2 in 2"
    ranked = [Item("x", "p", tuple(map(Response, "abc")), tuple(Rating(k, k // 2, "rank") for k in range(3)))]
    data.write(ranked, tmp_path / "r.jsonl", "afzal")
    assert main(["aggregate", str(tmp_path / "r.jsonl"), "--json"]) == 0
    facts = dict(map(tuple, json.loads(capsys.readouterr().out)["facts"]))
    assert facts == {"ranked groups": "1", "groups by size": "3: 1", "pairs": "3", "groups with equal ranks": "1"}
