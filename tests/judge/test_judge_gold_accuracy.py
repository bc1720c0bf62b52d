"""An answer compared with known truth: shares by category, distances, and the value of a number of known truths."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from afzal import data
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import aggregate, gold_accuracy, labels
from afzal.records import Comparison, Item, Response
from afzal.stats.calibration import brier_score
from afzal.stats.intervals import wilson


def vote(outcome: str, who: str | None, **more) -> Comparison:
    return Comparison(0, 1, outcome, annotator=who, **more)


def crowd(n: int, seed: int = 0, prompts: int | None = None, **right: float) -> list[Item]:
    """Rows with their truth, on which each named person is right with a given probability."""
    generator, rows = np.random.default_rng(seed), []
    for k in range(n):
        truth, other = ("first", "second") if generator.random() < 0.5 else ("second", "first")
        votes = tuple(vote(truth if generator.random() < p else other, who) for who, p in right.items())
        extra = {"category": "even" if k % 2 == 0 else "odd"}
        prompt = f"prompt {k % (prompts or n)}"
        answers = (Response(f"a {k}"), Response(f"b {k}"))
        rows.append(Item(f"i{k}", prompt, answers, votes, gold=(vote(truth, None),), extra=extra))
    return rows


def test_half_a_vote_on_each_side():
    """Three votes for the first give (3 + 1/2) / 4; one tie gives 1/2; "both bad" gives no label."""
    said = labels.of_items([Item("x", "p", (Response("a"), Response("b")), tuple(vote("first", w) for w in "abc"))])
    assert aggregate.aggregate(said, "jeffreys").p_first.tolist() == [0.875]
    tied = labels.of_items([Item("x", "p", (Response("a"), Response("b")), (vote("tie", "a"),))])
    assert aggregate.aggregate(tied, "jeffreys").p_first.tolist() == [0.5]
    bad = labels.of_items([Item("x", "p", (Response("a"), Response("b")), (vote("both_bad", "a"),))])
    assert np.isnan(aggregate.aggregate(bad, "jeffreys").p_first).all()


def test_distance_from_the_truth_by_hand():
    p, gold = np.array([1.0, 0.25, np.nan, 0.9]), np.array([labels.FIRST, labels.SECOND, labels.FIRST, -1])
    said = replace(labels.of_items(crowd(4, ann=1.0)), gold=gold)
    score = gold_accuracy.brier(p, said)
    assert score is not None
    losses = np.array([0, 0.25**2, 0.5**2])
    assert score.value == pytest.approx(losses.mean())
    half = 4.302653 * losses.std(ddof=1) / 3**0.5  # Student's, within 0 and 1
    assert (score.low, score.high) == pytest.approx((0.0, losses.mean() + half))
    assert gold_accuracy.brier(p, replace(said, gold=np.full(4, -1))) is None


@pytest.mark.parametrize(("p", "n"), [(1.0, 10), (0.9, 10)])
def test_a_brier_score_without_spread_has_an_interval(p: float, n: int):
    """Ten certain and correct answers are 10 of 10: Wilson's interval of an error share. So are ten equal ones."""
    score = brier_score(np.full(n, (1 - p) ** 2), range(n))
    assert score.value == pytest.approx((1 - p) ** 2)
    low, high = wilson(n * score.value, n)
    assert score.ends == pytest.approx((low, high))
    assert high > 0.2
    assert brier_score(np.full(n, 0.01), [0] * n).low is None  # one prompt


def test_right_by_category():
    rows = crowd(20, ann=1.0)
    said = labels.of_items([row if k % 2 == 0 else Item(**_turned(row)) for k, row in enumerate(rows)])
    categories = gold_accuracy.by_category(aggregate.aggregate(said, "mean").p_first, said)
    assert {name: (own.pairs, own.right) for name, own in categories.items()} == {"even": (10, 1.0), "odd": (10, 0.0)}
    one = labels.of_items(rows[::2])
    assert gold_accuracy.by_category(aggregate.aggregate(one, "mean").p_first, one) == {}


def _turned(row: Item) -> dict:
    """The row with every vote reversed, and the same truth."""
    votes = tuple(vote("second" if v.outcome == "first" else "first", v.annotator) for v in row.votes)
    return {"id": row.id, "prompt": row.prompt, "responses": row.responses, "votes": votes, "gold": row.gold} | {
        "extra": row.extra
    }


def test_more_truths_reveal_reversed_annotators():
    """One good annotator, two who are usually wrong: the majority is wrong, and few truths suffice to learn weights."""
    said = labels.of_items(crowd(300, good=0.85, bad=0.2, worse=0.2))
    assert aggregate.aggregate(said, "mean").right(said.gold) < 0.35
    curve = gold_accuracy.curve(said, (5, 60))
    few, many = curve.by_size[5]["gold"], curve.by_size[60]["gold"]
    assert curve.truths == 300
    assert 0.6 < few.right < many.right
    assert many.least > 0.8
    assert many.rank_correlation > 0.6
    assert curve.in_sample == pytest.approx(many.right, abs=0.03)


def test_prompts_are_held_out_with_all_their_pairs():
    """Pairs of a prompt with known truth are excluded from the measurement."""
    said = labels.of_items(crowd(60, prompts=6, ann=0.9, bob=0.9, cid=0.9))
    at = np.arange(60)
    number = np.unique(said.prompts, return_inverse=True)[1]
    for seed in range(5):
        chosen, rest = gold_accuracy._choice(at, number, 12, seed)
        assert len(chosen) == 12
        assert not set(number[chosen]) & set(number[rest])
        assert len(rest) == 40  # the truth is known for two prompts, twenty pairs
    with pytest.raises(AfzalError, match="no pair to measure on"):
        gold_accuracy.curve(said, (55,))


def test_the_share_that_is_right_has_an_interval_over_prompts():
    """60 pairs of 3 prompts say less than 60 of 60 prompts; an answer that is right on all pairs is not certain."""
    alone, shared = (labels.of_items(crowd(60, prompts=n, ann=0.7)) for n in (60, 3))
    wide = []
    for said in (alone, shared):
        share = gold_accuracy.accuracy_on(aggregate.aggregate(said, "majority").p_first, said, said.gold >= 0)
        assert share.pairs == 60
        assert share.low < share.right < share.high
        wide.append(share.high - share.low)
    assert wide[0] < wide[1]
    sure = labels.of_items(crowd(10, ann=1.0))
    share = gold_accuracy.accuracy_on(aggregate.aggregate(sure, "majority").p_first, sure, sure.gold >= 0)
    assert (share.right, share.high) == pytest.approx((1.0, 1.0))
    assert share.low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson's of 10 in 10


@pytest.mark.parametrize("size", [0, 4, 9])
def test_sizes_that_leave_nothing_are_refused(size):
    with pytest.raises(AfzalError, match="cannot be tried") as error:
        gold_accuracy.curve(labels.of_items(crowd(4, ann=1.0)), (size,))
    assert "from 1 to 3" in str(error.value)


def test_the_command_says_what_truth_is_worth(tmp_path, capsys):
    data.write(crowd(40, ann=0.9, bob=0.8, cid=0.3), tmp_path / "rows.jsonl", "afzal")
    asked = ["aggregate", str(tmp_path / "rows.jsonl"), "--gold-sizes", "5, 10", "--resamples", "20"]
    assert main([*asked, "--json", "--page", str(tmp_path / "page")]) == 0
    body = json.loads(capsys.readouterr().out)
    assert list(body["gold_sizes"]["by_size"]) == ["5", "10"]
    assert sum(body["truths"].values()) == 40
    assert body["right_low"] < body["right"] < body["right_high"]
    assert all(line["right_low"] < line["right"] < line["right_high"] for line in body["lines"])
    assert list(body["by_category"]) == ["even", "odd"]
    page = (tmp_path / "page/annotators.html").read_text()
    assert "How much known truth is worth" in page
    assert "all 40, in sample" in page
    for wrong in ("5,x", "", "-1", "5,,6"):
        assert main([*asked[:3], wrong]) == 2
        assert "is not a list of numbers" in capsys.readouterr().err


def test_two_orders_that_disagree_are_no_label():
    """A judge's verdicts in the two orders of a pair are one label if they agree, and none if they do not."""
    same = (vote("first", "j", shown_first=0), vote("first", "j", shown_first=1))
    parted = (vote("first", "j", shown_first=0), vote("second", "j", shown_first=1))
    rows = [Item(f"i{k}", f"p{k}", (Response("a"), Response("b")), votes) for k, votes in enumerate((same, parted))]
    assert labels.of_items(rows).table.tolist() == [[labels.FIRST], [-1]]
    changed = (vote("first", "j", shown_first=0), vote("second", "j", shown_first=0))
    again = labels.of_items([Item("x", "p", (Response("a"), Response("b")), changed)])
    assert again.table.tolist() == [[labels.SECOND]]  # a person who changed their mind
