"""Judge figures: the committed ones meet their bounds, the table matches them, and a small run agrees."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import judging

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "judging"


@pytest.fixture(scope="module")
def committed():
    return json.loads((FOLDER / "judging.json").read_text())


def test_the_table_is_made_of_the_figures(committed):
    assert (FOLDER / "judging.md").read_text() == "\n".join(judging.table(committed)) + "\n"


def test_win_rates_with_clustered_prompts_cover_the_truth(committed):
    assert committed["runs"] >= 400
    rows = committed["tables"]["win rate"]
    assert all(0.93 <= r["coverage"] <= 0.97 for r in rows)
    assert max(r["by pairs"] for r in rows if r["dependence"] > 0) < 0.9


def test_a_few_labels_and_a_judge_cover_and_are_narrower_than_people_alone(committed):
    """Below 93% only with a judge that is nearly always right: 50 labels then include only a handful of its errors."""
    rows = committed["tables"]["win rate from a few labels and a judge"]
    assert {r["labelled prompts"] for r in rows} == {50, 100, 200}
    for r in rows:
        assert (0.93 if r["judge is right"] < 0.9 else 0.92) <= r["coverage"] <= 0.99, r
        assert r["width"] < r["width alone"]


def test_judges_whose_answer_is_known():
    slot, itself = judging.known_judges(np.random.default_rng(3), 30)
    assert (slot["win rate"], slot["contradictions"]) == (0.5, 1.0)
    assert itself["win rate"] == 0.5
    assert itself["at equal lengths"] == pytest.approx(0.5, abs=1e-9)


def test_small_simulations_agree():
    """200 data sets: the standard error of a coverage is 1.5 points."""
    row = judging.win_rates(np.random.default_rng(1), 200, 60, "4", 0.5)
    assert 0.91 <= row["coverage"] <= 0.985
    assert row["by pairs"] < 0.9
    row = judging.corrected(np.random.default_rng(2), 200, 100, "1", 0.75)
    assert 0.91 <= row["coverage"] <= 0.99
    assert row["width"] < row["width alone"]


def test_the_verdicts_that_are_timed_are_those_that_are_named(tmp_path):
    from afzal.judge import rank_models, read

    judging.write_verdicts(tmp_path / "v.jsonl", 2000)
    said = read([str(tmp_path / "v.jsonl")])
    assert len(said.verdicts) == 2000
    assert rank_models(said, resamples=2).names[0] == "m0"
