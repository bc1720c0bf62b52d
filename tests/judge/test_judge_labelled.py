"""Judges of labelled pairs whose answers name no models: the truth is the unsigned label, or the gold label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import afzal
from afzal import judge
from afzal.data import native
from afzal.errors import AfzalError
from afzal.judge.labelled import read_labelled
from afzal.records import Comparison, Item, Response


def rows(path: Path, items: list[Item]) -> str:
    path.write_text("".join(json.dumps(native.to_row(item)) + "\n" for item in items))
    return str(path)


def pair(k: int, *votes: Comparison, gold: tuple[Comparison, ...] = ()) -> Item:
    return Item(f"i{k}", f"prompt {k}", (Response("a"), Response("b")), votes, gold=gold)


def judged(k: int, *, good: bool, poor: bool) -> Item:
    """A pair labelled "first", and two judges; the poor one lists the responses in reverse."""
    label = Comparison(0, 1, "first")
    said = Comparison(0, 1, "first" if good else "second", annotator="good", shown_first=0)
    turned = Comparison(1, 0, "second" if poor else "first", annotator="poor", shown_first=1)
    return pair(k, label, said, turned)


def test_judges_are_compared_on_the_same_prompts(tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", [judged(k, good=k > 0, poor=k % 2 == 0) for k in range(40)])
    board = afzal.api.leaderboard(source, of="judges", resamples=200)
    by_name = {line["name"]: line["value"] for line in board["lines"]}
    assert by_name == {"good": 39 / 40, "poor": 0.5}
    (gap,) = board["differences"]
    assert (gap["first"], gap["second"]) == ("good", "poor")
    assert gap["value"] == pytest.approx(0.475)
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert "good over poor: 47.5 [" in str(board)
    assert "points, told apart" in str(board)


def test_judges_that_always_agree_are_not_distinguished(tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", [judged(k, good=k % 3 > 0, poor=k % 3 > 0) for k in range(30)])
    (gap,) = afzal.api.leaderboard(source, of="judges", resamples=50)["differences"]
    assert (gap["value"], gap["low"], gap["high"]) == (0, 0, 0)


def test_gold_overrules_the_label_and_a_disputed_truth_counts_for_nobody(tmp_path: Path) -> None:
    said = Comparison(0, 1, "second", annotator="j")
    label, other = Comparison(0, 1, "first"), Comparison(0, 1, "second")
    by_gold = pair(0, label, said, gold=(other,))
    disputed = pair(1, label, other, said)
    likely = pair(2, Comparison(0, 1, "first"), Comparison(0, 1, "first", probability=0.3, annotator="j"))
    read = read_labelled([rows(tmp_path / "rows.jsonl", [by_gold, disputed, likely])])
    assert sorted(read.gold.values()) == ["first", "second"]
    assert [v.outcome for v in read.verdicts] == ["second", "second"]  # the probability is what counts
    assert judge.rank_judges(read, resamples=20).lines[0].accuracy.value == 0.5


def test_rows_without_a_truth_are_refused(tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", [pair(0, Comparison(0, 1, "first", annotator="j"))])
    with pytest.raises(AfzalError, match="no verdicts on pairs of known truth") as error:
        read_labelled([source])
    assert "rows.jsonl of afzal judge" in str(error.value)


def test_a_stated_probability_is_of_the_response_with_the_smaller_number(tmp_path: Path) -> None:
    """A judge that lists the responses in reverse states the probability of the second one."""
    turned = Comparison(1, 0, "first", annotator="sure", probability=0.9, shown_first=1)
    said = read_labelled([rows(tmp_path / "rows.jsonl", [pair(0, Comparison(0, 1, "first"), turned)])])
    (verdict,) = said.verdicts
    assert (verdict.outcome, verdict.shown_first) == ("second", 1)
    assert verdict.probability == pytest.approx(0.1)
